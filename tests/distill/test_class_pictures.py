"""Pictures in class folders, for a teacher that works on pixels and is told classes."""

from pathlib import Path

import pytest
import torch
from picture_folders import write_classes
from PIL import Image
from tiny_classes import save_tiny_edm
from tiny_training import CPU, silent, tiny_recipe

from distill.data import DataError
from distill.encoding import picture_samples
from distill.pictures import read_picture, unit_range
from distill.recipe import Recipe
from distill.shards import open_shard, shard_path
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Teacher, TeacherError


@pytest.fixture(scope="module")
def edm(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """Class-conditional, four classes, 16 x 16 pixels; read only."""
    return load_teacher(save_tiny_edm(tmp_path_factory.mktemp("edm") / "edm"), CPU)


def class_recipe(folder: Path, model: Path, *overrides: str) -> Recipe:
    source = "positives={source: classes, folder: classes, batch: 2, resize: adm}"
    return tiny_recipe(folder, model, source, *overrides)


def test_pixels_are_kept_as_bytes_and_read_as_the_teacher_sees_them(
    edm: Teacher, tmp_path: Path
) -> None:
    folder = write_classes(tmp_path / "classes", ("0", "3"), 3, 20)
    recipe = class_recipe(tmp_path, tmp_path)
    samples = picture_samples(edm, recipe, silent)
    assert samples.prompts == ("0", "3")
    assert [members.tolist() for members in samples.members] == [[0, 1, 2], [3, 4, 5]]
    assert samples.conditions[torch.tensor([1, 0])].parts["label"].tolist() == [3, 0]
    kept = open_shard(shard_path(recipe.run / "pictures", 0))["latents"]
    assert (kept.dtype, kept.shape) == (torch.uint8, (6, 3, 16, 16))
    expected = unit_range(read_picture(folder / "3" / "1.png", 16, "adm"))
    assert torch.equal(samples.latents[torch.tensor([[4]])][0, 0], expected)


def test_classes_are_read_as_they_lie_there(edm: Teacher, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "classes", ("0",), 1, 16)
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(folder / "0" / "0.png") as image:
        image.save(folder / "0" / "0.png", exif=exif)
    stored = unit_range(read_picture(folder / "0" / "0.png", 16, "adm", upright=False))
    samples = picture_samples(edm, class_recipe(tmp_path, tmp_path), silent)
    assert torch.equal(samples.latents[:][0], stored)


def test_another_way_of_resizing_is_encoded_again(edm: Teacher, tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", ("0",), 2, 20)
    one = picture_samples(edm, class_recipe(tmp_path, tmp_path), silent).latents[:]
    recipe = class_recipe(tmp_path, tmp_path, "positives.resize=lanczos")
    assert not torch.equal(picture_samples(edm, recipe, silent).latents[:], one)


def test_a_class_out_of_range_is_named_before_a_picture_is_read(
    edm: Teacher, tmp_path: Path
) -> None:
    write_classes(tmp_path / "classes", ("0", "4"), 1, 20)
    with pytest.raises(TeacherError, match=r"class '4' is not one of .* the numbers 0 to 3"):
        picture_samples(edm, class_recipe(tmp_path, tmp_path), silent)
    assert not (tmp_path / "run" / "pictures" / "shard-00000.safetensors").exists()


def test_classes_are_refused_by_a_teacher_that_is_told_prompts(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="source is classes, but this teacher is told prompts"):
        picture_samples(teacher, class_recipe(tmp_path, tiny_sdxl), silent)
