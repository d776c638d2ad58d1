"""Real pictures become latents, once; what is broken is left out and named, or stops the work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import write_pictures
from PIL import Image
from tiny_training import CPU, silent, tiny_recipe

from distill.data import DataError, Samples
from distill.encoding import UNREADABLE, picture_samples
from distill.pictures import read_picture, unit_range
from distill.recipe import Recipe
from distill.shards import read_note
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher


def folder_recipe(folder: Path, model: Path, batch: int = 2, *overrides: str) -> Recipe:
    """A recipe of the folder `pictures` beside it."""
    source = f"positives={{source: images, folder: pictures, batch: {batch}}}"
    return tiny_recipe(folder, model, source, *overrides)


def fail(text: str) -> None:
    raise AssertionError(f"nothing should be encoded again: {text}")


def everything(samples: Samples) -> torch.Tensor:
    return samples.latents[:]


def test_pictures_become_latents_grouped_by_text(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "pictures")
    samples = picture_samples(teacher, folder_recipe(tmp_path, tiny_sdxl), silent)
    assert samples.prompts == ("red", "blue", "a picture")
    assert [members.tolist() for members in samples.members] == [[0, 2, 4], [1, 3], [0]]
    picture = unit_range(read_picture(folder / "2.png", 64, "lanczos"))
    third = teacher.encode_pictures(picture[None])[0]
    assert torch.allclose(samples.latents[torch.tensor(2)], third, atol=1e-5)
    assert everything(samples).std() > 0.01
    blue = teacher.encode(["blue"]).parts["prompt"][0]
    assert torch.allclose(samples.conditions[torch.tensor(1)].parts["prompt"], blue, atol=1e-5)


def test_captioned_pictures_are_turned_upright(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "pictures", 1)
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(folder / "0.png") as image:
        image.save(folder / "0.png", exif=exif)
    picture = unit_range(read_picture(folder / "0.png", 64, "lanczos", upright=True))
    samples = picture_samples(teacher, folder_recipe(tmp_path, tiny_sdxl), silent)
    turned = teacher.encode_pictures(picture[None])[0]
    assert torch.allclose(everything(samples)[0], turned, atol=1e-5)


def test_latents_are_kept_until_a_picture_or_a_caption_changes(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "pictures", suffix="bmp")
    recipe = folder_recipe(tmp_path, tiny_sdxl)
    before = everything(picture_samples(teacher, recipe, silent))
    assert torch.equal(everything(picture_samples(teacher, recipe, fail)), before)
    shutil.copyfile(folder / "1.bmp", folder / "0.bmp")  # another picture of as many bytes
    lines: list[str] = []
    after = everything(picture_samples(teacher, recipe, lines.append))
    assert lines == [f"encoding 5 pictures of {folder}"]
    assert torch.equal(after[0], after[1])
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("blue", "green"))
    assert picture_samples(teacher, recipe, lines.append).prompts[1] == "green"
    assert len(lines) == 2


def test_latents_of_another_vae_are_not_taken(tiny_sdxl: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    recipe, other = folder_recipe(tmp_path, tiny_sdxl), load_teacher(tiny_sdxl, CPU)
    before = everything(picture_samples(other, recipe, silent))
    other.pipe.vae.quant_conv.weight.mul_(2)
    lines: list[str] = []
    assert not torch.equal(everything(picture_samples(other, recipe, lines.append)), before)
    assert len(lines) == 1


def test_conditions_of_another_text_encoder_are_not_taken(tiny_sdxl: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    recipe, other = folder_recipe(tmp_path, tiny_sdxl), load_teacher(tiny_sdxl, CPU)
    before = picture_samples(other, recipe, silent).conditions[:].parts["prompt"]
    next(other.pipe.text_encoder.parameters()).mul_(2)
    lines: list[str] = []
    after = picture_samples(other, recipe, lines.append).conditions[:].parts["prompt"]
    assert not torch.equal(after, before)
    assert lines == [
        f"{recipe.run / 'pictures' / 'conditions'} was made with another teacher; it is made again"
    ]


def test_a_broken_shard_is_named_and_made_again(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures", 20)
    recipe = folder_recipe(tmp_path, tiny_sdxl, 1)
    before = everything(picture_samples(teacher, recipe, silent))
    shard = recipe.run / "pictures" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    lines: list[str] = []
    assert torch.equal(everything(picture_samples(teacher, recipe, lines.append)), before)
    assert lines[0].startswith(f"shard {shard} is broken")
    assert lines[1] == f"encoding 4 pictures of {tmp_path / 'pictures'}"
    assert list(recipe.run.rglob("*.partial")) == []


def test_a_shared_cache_is_encoded_once(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures")
    one, other = (
        folder_recipe(tmp_path, tiny_sdxl, 2, "positives.cache=shared", f"run={name}")
        for name in ("one", "other")
    )
    before = everything(picture_samples(teacher, one, silent))
    assert torch.equal(everything(picture_samples(teacher, other, fail)), before)
    assert not other.run.exists()


def break_pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"no picture")


def test_more_than_one_in_a_hundred_unreadable_stop_with_the_count(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "pictures")
    (folder / "3.png").unlink()
    recipe = folder_recipe(tmp_path, tiny_sdxl)
    with pytest.raises(DataError) as error:
        picture_samples(teacher, recipe, silent)
    sentence = str(error.value)
    assert sentence.startswith(f"1 of 5 pictures of {folder} cannot be read, more than 1%;")
    assert f"picture {folder / '3.png'} cannot be read: " in sentence
    assert "No such file" in sentence


def small_pictures(folder: Path, count: int) -> Path:
    """Many pictures of few pixels, all of one caption."""
    folder.mkdir()
    lines = []
    for number in range(count):
        Image.fromarray(np.full((4, 4, 3), number % 256, np.uint8)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": "red"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_one_in_a_hundred_unreadable_is_left_out_and_named(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = small_pictures(tmp_path / "pictures", 100)
    break_pictures(folder, "50.png")
    recipe, lines = folder_recipe(tmp_path, tiny_sdxl, 10), list[str]()
    samples = picture_samples(teacher, recipe, lines.append)
    assert len(samples.latents) == 99
    assert sorted(samples.members[0].tolist()) == list(range(99))
    assert lines[1].startswith(f"1 of 100 pictures of {folder} cannot be read and are left out")
    assert lines[2].startswith(f"picture {folder / '50.png'} cannot be read: cannot identify")
    assert (recipe.run / UNREADABLE).read_text() == lines[2] + "\n"
    again: list[str] = []
    picture_samples(teacher, recipe, again.append)
    assert again == lines[1:]  # told at every start, read only once


def test_ten_unreadable_pictures_are_reported_and_all_are_listed(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.encoding.MOST_UNREADABLE", 0.5)
    folder = small_pictures(tmp_path / "pictures", 40)
    broken = [f"{number}.png" for number in range(20, 32)]
    break_pictures(folder, *broken)
    recipe, lines = folder_recipe(tmp_path, tiny_sdxl, 4), list[str]()
    assert len(picture_samples(teacher, recipe, lines.append).latents) == 28
    assert len(lines) == 12
    listed = (recipe.run / UNREADABLE).read_text().splitlines()
    assert [line.split(" cannot")[0] for line in listed] == [
        f"picture {folder / name}" for name in broken
    ]


def test_a_batch_without_a_readable_picture_is_no_obstacle(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.encoding.MOST_UNREADABLE", 0.95)
    folder = small_pictures(tmp_path / "pictures", 17)
    break_pictures(folder, *(f"{n}.png" for n in range(17) if n != 3))
    recipe = folder_recipe(tmp_path, tiny_sdxl, 1)
    samples = picture_samples(teacher, recipe, silent)
    assert len(samples.latents) == 1
    notes = [read_note(path) for path in sorted((recipe.run / "pictures").glob("shard-*"))]
    assert [(note["entries"], len(note["rows"])) for note in notes] == [(16, 1), (1, 0)]


def test_long_captions_are_refused_before_a_picture_is_encoded(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "pictures")
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("blue", "q" * 90))
    with pytest.raises(DataError, match=r"prompt 'qqq.* has 92 tokens; the limit is 77"):
        picture_samples(teacher, folder_recipe(tmp_path, tiny_sdxl), fail)
    skipping = folder_recipe(tmp_path, tiny_sdxl, 2, "positives.long_prompts=skip")
    samples = picture_samples(teacher, skipping, silent)
    assert samples.prompts == ("red", "a picture")
    assert len(samples.latents) == 5  # the pictures are kept, in case the setting changes
