"""Captioned pictures become samples, and every draw of a step is of samples that do not overlap."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import CPU, draw, silent

from distill import data
from distill.data import DataError, Samples, image_samples, read_captions, read_picture
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import weights_digest


def write_pictures(folder: Path, count: int = 5, suffix: str = "png") -> Path:
    """Pictures of noise, by turns "red" and "blue"; the first is also "a picture"."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        name = f"{number}.{suffix}"
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append({"file_name": name, "text": ("red", "blue")[number % 2]})
    lines.append({"file_name": f"0.{suffix}", "text": "a picture"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    return folder


def fail(text: str) -> None:
    raise AssertionError(f"nothing should be encoded again: {text}")


def test_captions_group_files_by_text_in_the_files_order(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    assert read_captions(folder) == {
        "red": ["0.png", "2.png", "4.png"],
        "blue": ["1.png", "3.png"],
        "a picture": ["0.png"],
    }


def test_a_line_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    line = json.dumps({"file_name": "a.png", "text": "red"}) + "\n"
    (tmp_path / "metadata.jsonl").write_text(2 * line, "utf-8")
    assert read_captions(tmp_path) == {"red": ["a.png"]}


@pytest.mark.parametrize(
    "line", ['{"text": "red"', '{"text": "red"}', '{"file_name": "a.png"}', "[1]", '"red"', "3"]
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    good = json.dumps({"file_name": "a.png", "text": "red"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n", "utf-8")
    with pytest.raises(DataError) as error:
        read_captions(tmp_path)
    sentence = f"line 2: not an object with file_name and text: {line}"
    assert str(error.value) == f"{tmp_path / 'metadata.jsonl'}, {sentence}"


def test_metadata_that_is_missing_empty_or_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    with pytest.raises(DataError, match=r"positives.folder: .*metadata.jsonl does not exist"):
        read_captions(tmp_path)
    path.write_text("\n\n", "utf-8")
    with pytest.raises(DataError, match=r"metadata.jsonl is empty: there is no prompt to learn"):
        read_captions(tmp_path)
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match=r"metadata.jsonl is not UTF-8"):
        read_captions(tmp_path)


def test_a_picture_of_the_right_size_is_read_to_the_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 8)
    assert picture.shape == (3, 8, 8)
    assert np.array_equal(((picture + 1) * 127.5).round().permute(1, 2, 0).numpy(), pixels)
    assert picture.min() >= -1
    assert picture.max() <= 1


@pytest.mark.parametrize(("width", "height"), [(30, 10), (10, 30), (11, 10)])
def test_a_picture_is_cut_to_its_middle_square(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = ((read_picture(tmp_path / "a.png", 10) + 1) * 127.5).round().permute(1, 2, 0)
    top, left = (height - 10) // 2, (width - 10) // 2
    assert np.array_equal(picture.numpy(), pixels[top : top + 10, left : left + 10])


def test_a_picture_of_another_size_and_mode_is_made_to_fit(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 255).save(tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png", 4), torch.ones(3, 4, 4))


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = write_pictures(tmp_path / "pictures", 1) / "0.png"
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:3000])
    for name, cause in (("text", "cannot identify"), ("torn", "truncated"), ("no", "No such file")):
        with pytest.raises(DataError, match=rf"picture .*{name}\.png cannot be read: .*{cause}"):
            read_picture(tmp_path / f"{name}.png", 8)


def test_pictures_become_latents_grouped_by_text(teacher: SdxlTeacher, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    samples = image_samples(teacher, folder, 2, tmp_path / "cache.safetensors", silent)
    assert samples.prompts == ("red", "blue", "a picture")
    assert [members.tolist() for members in samples.members] == [[0, 2, 4], [1, 3], [0]]
    third = teacher.encode_pictures(read_picture(folder / "2.png", 64)[None])[0]
    assert torch.allclose(samples.latents[2], third, atol=1e-5)
    assert samples.latents.std() > 0.01
    blue = teacher.encode(["blue"])
    assert torch.allclose(samples.conditions.parts["prompt"][1], blue.parts["prompt"][0], atol=1e-5)


def test_latents_are_kept_until_a_picture_or_a_caption_changes(
    teacher: SdxlTeacher, tmp_path: Path
) -> None:
    folder, cache = write_pictures(tmp_path / "pictures", suffix="bmp"), tmp_path / "c.safetensors"
    before = image_samples(teacher, folder, 4, cache, silent).latents
    assert torch.equal(image_samples(teacher, folder, 4, cache, fail).latents, before)
    shutil.copyfile(folder / "1.bmp", folder / "0.bmp")  # another picture of as many bytes
    lines: list[str] = []
    after = image_samples(teacher, folder, 4, cache, lines.append).latents
    assert lines == [f"encoding 5 pictures of {folder}"]
    assert torch.equal(after[0], after[1])
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("blue", "green"))
    assert image_samples(teacher, folder, 4, cache, lines.append).prompts[1] == "green"
    assert len(lines) == 2


def test_latents_of_another_vae_are_not_taken(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder, cache = write_pictures(tmp_path / "pictures"), tmp_path / "cache.safetensors"
    other = load_teacher(tiny_sdxl, CPU)
    before = image_samples(other, folder, 4, cache, silent).latents
    other.pipe.vae.quant_conv.weight.mul_(2)
    lines: list[str] = []
    assert not torch.equal(image_samples(other, folder, 4, cache, lines.append).latents, before)
    assert len(lines) == 1


def test_a_broken_cache_is_named_and_made_again(teacher: SdxlTeacher, tmp_path: Path) -> None:
    folder, cache = write_pictures(tmp_path / "pictures"), tmp_path / "cache.safetensors"
    before = image_samples(teacher, folder, 4, cache, silent).latents
    cache.write_bytes(cache.read_bytes()[:100])
    lines: list[str] = []
    assert torch.equal(image_samples(teacher, folder, 4, cache, lines.append).latents, before)
    assert f"{cache} is broken" in lines[0]
    assert list(tmp_path.glob("*.partial")) == []


def test_a_missing_picture_is_named(teacher: SdxlTeacher, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"picture .*3\.png cannot be read: .*No such file"):
        image_samples(teacher, folder, 4, tmp_path / "cache.safetensors", silent)
    assert not (tmp_path / "cache.safetensors").exists()


def test_the_parts_of_a_draw_are_of_one_prompt_and_never_overlap(samples: Samples) -> None:
    row = {latent.numpy().tobytes(): i for i, latent in enumerate(samples.latents)}
    seen: set[int] = set()
    for seed in range(20):
        drawn = data.draw(samples, 2, (4, 2, 3), np.random.default_rng(seed))
        assert [part.shape[:2] for part in drawn.parts] == [(2, 4), (2, 2), (2, 3)]
        prompts = []
        for group in range(2):
            picked = [row[x.numpy().tobytes()] for part in drawn.parts for x in part[group]]
            assert len(set(picked)) == 9
            (prompt,) = {index // 10 for index in picked}
            for name, part in drawn.conditions.parts.items():
                assert torch.equal(part[group], samples.conditions.parts[name][prompt])
            prompts.append(prompt)
            seen |= set(picked)
        assert prompts[0] != prompts[1]
    assert len(seen) == 30  # over 20 draws every sample had its turn


def test_a_draw_is_a_function_of_its_generator(samples: Samples) -> None:
    one, again, other = (
        data.draw(samples, 3, (4,), np.random.default_rng(seed)).parts[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_more_groups_than_prompts_repeat_prompts(samples: Samples) -> None:
    drawn = data.draw(samples, 7, (4, 2), np.random.default_rng(0))
    assert drawn.parts[0].shape[:2] == (7, 4)
    assert not torch.equal(drawn.parts[0][:, 0], drawn.parts[0][:, 1])


def test_too_few_samples_of_a_prompt_are_named_with_their_number(samples: Samples) -> None:
    members = (samples.members[0], samples.members[1][:5], samples.members[2])
    few = Samples(samples.prompts, samples.conditions, samples.latents, members)
    few.check_enough(5)
    with pytest.raises(DataError) as error:
        few.check_enough(6)
    assert str(error.value) == (
        "prompt 'blue' has 5 samples; drift.positives + drift.anchors asks for 6 of each prompt"
    )


def test_no_prompt_at_all_is_an_error(samples: Samples) -> None:
    nothing = Samples((), samples.conditions[:0], samples.latents, ())
    with pytest.raises(DataError, match="there is no prompt to learn: the prompt bank is empty"):
        nothing.check_enough(1)


def test_a_digest_of_weights_sees_names_and_every_bit() -> None:
    weights = {"a": draw(2, 3), "b": torch.tensor(1.0)}
    same = weights_digest({"b": torch.tensor(1.0), "a": draw(2, 3).t().contiguous().t()})
    assert weights_digest(weights) == same
    half = {**weights, "a": weights["a"].bfloat16()}
    moved = {**weights, "a": weights["a"].nextafter(torch.tensor(9.0))}
    renamed = {"a": weights["a"], "c": weights["b"]}
    digests = {weights_digest(w) for w in (weights, half, moved, renamed)}
    assert len(digests) == 4
