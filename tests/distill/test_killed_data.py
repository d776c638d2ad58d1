"""Encoding and the bank, killed in the middle, go on without repeating or skipping a sample."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from picture_folders import write_pictures
from tiny_training import different_files, silent, tiny_recipe

from distill.bank import bank_samples, make_bank
from distill.encoding import picture_samples
from distill.recipe import Recipe, RecipeError
from distill.run import bank, open_samples
from distill.teachers.sdxl import SdxlTeacher
from distill.turns import Turns

MANY = tuple(f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in "abc")

KILLED = """
import os, signal, sys
from pathlib import Path
from tiny_training import CPU
from distill.recipe import read_recipe
from distill.run import open_samples
from distill.teachers.opening import load_teacher

recipe = read_recipe(Path(sys.argv[1]))
teacher = load_teacher(recipe.teacher.model, CPU)
way, left = sys.argv[2], int(sys.argv[3])
call = getattr(teacher, way)

def dying(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args)

setattr(teacher, way, dying)
open_samples(teacher, recipe, print)
"""


def kill(recipe: Path, way: str, calls: int) -> None:
    """A process that opens the samples and is killed after so many calls of a teacher's method."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, str(recipe), way, str(calls)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def image_recipe(folder: Path, model: Path) -> Recipe:
    folder.mkdir(exist_ok=True)
    source = "positives={source: images, folder: ../pictures, batch: 1}"
    recipe = tiny_recipe(folder, model, source)
    (folder / "recipe.yaml").write_text(recipe.resolved(), "utf-8")
    return recipe


def test_an_encoding_that_was_killed_goes_on(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures", 40)  # shards of 16, 16 and 8
    recipe, whole = (image_recipe(tmp_path / name, tiny_sdxl) for name in ("killed", "whole"))
    kill(tmp_path / "killed" / "recipe.yaml", "encode_pictures", 20)
    lines: list[str] = []
    samples = picture_samples(teacher, recipe, lines.append)
    assert lines == [f"encoding 24 pictures of {tmp_path / 'pictures'}"]
    assert len(samples.latents) == 40
    expected = picture_samples(teacher, whole, silent)
    assert torch.equal(samples.latents[:], expected.latents[:])
    assert different_files(recipe.run, whole.run) == []


def bank_recipe(folder: Path, model: Path) -> Recipe:
    """Nine prompts of four samples in batches of two: shards of four, four and one."""
    recipe = tiny_recipe(folder, model, "positives.per_prompt=4", "positives.batch=2")
    (folder / "prompts.txt").write_text("\n".join(MANY), "utf-8")
    (folder / "recipe.yaml").write_text(recipe.resolved(), "utf-8")
    return recipe


def test_a_bank_that_was_killed_goes_on(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe, whole = (bank_recipe(tmp_path / name, tiny_sdxl) for name in ("killed", "whole"))
    kill(tmp_path / "killed" / "recipe.yaml", "sample", 11)
    assert (recipe.run / "bank" / "shard-00000.safetensors").is_file()
    assert not (recipe.run / "bank" / "shard-00001.safetensors").is_file()
    samples, expected = (bank_samples(teacher, one, silent) for one in (recipe, whole))
    assert torch.equal(samples.latents[:], expected.latents[:])
    assert different_files(recipe.run, whole.run) == []


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_bank_of_several_processes_is_that_of_one_to_the_bit(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path, count: int
) -> None:
    shared, alone = (bank_recipe(tmp_path / name, tiny_sdxl) for name in ("shared", "alone"))
    for index in reversed(range(count)):
        make_bank(teacher, shared, silent, Turns(index, count))
    make_bank(teacher, alone, silent)
    assert different_files(shared.run, alone.run) == []
    found = open_samples(teacher, shared, silent)
    assert (
        found.conditions[:]
        .parts["prompt"]
        .allclose(teacher.encode(MANY).parts["prompt"], atol=1e-5)
    )


def test_the_bank_is_a_stage_of_its_own(tiny_sdxl: Path, tmp_path: Path) -> None:
    recipe, lines = bank_recipe(tmp_path, tiny_sdxl), list[str]()
    assert bank(recipe, Turns(1, 2), lines.append) == recipe.run / "bank"
    assert lines == [f"bank {recipe.run / 'bank'}: 9 prompts, the shards of process 1 of 2"]
    made = sorted(path.name for path in (recipe.run / "bank").glob("shard-*"))
    assert made == ["shard-00001.safetensors"]
    bank(recipe, report=lines.append)
    assert lines[1:] == [f"bank {recipe.run / 'bank'}: 9 prompts"]
    assert len(list((recipe.run / "bank").glob("shard-*"))) == 3


def test_a_recipe_of_pictures_has_no_bank(tiny_sdxl: Path, tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path / "images", tiny_sdxl)
    with pytest.raises(RecipeError, match=r"positives\.source is images, so there is no bank"):
        bank(recipe)


def test_a_bank_that_lost_its_conditions_has_them_made_again(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = bank_recipe(tmp_path, tiny_sdxl)
    before = bank_samples(teacher, recipe, silent).conditions[:].parts["pooled"]
    for path in (recipe.run / "bank" / "conditions").iterdir():
        path.unlink()
    assert torch.equal(bank_samples(teacher, recipe, silent).conditions[:].parts["pooled"], before)
