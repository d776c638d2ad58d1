"""The same command resumes: whatever stopped a run, the student is the same to the bit."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_training import Trained, different_files, silent, tiny_recipe, watched
from torch import Tensor

from distill.checkpoint import CheckpointError
from distill.data import Samples
from distill.recipe import Recipe, read_recipe
from distill.run import distil, open_samples
from distill.stats import whole_lines
from distill.teachers.sdxl import SdxlTeacher
from distill.train import TrainingError, run_training

# Two feature passes a micro-batch, four a step, and four more for the diagnostics of step 0: the
# nineteenth pass is in the second micro-batch of step 3, halfway from one checkpoint to the next.
FATAL_PASS = 19

KILLED = f"""
import os, signal, sys
from pathlib import Path
from tiny_training import tiny_recipe, watched
from distill.run import open_samples
from distill.train import run_training

passes = []

def watch(*_):
    passes.append(1)
    if len(passes) == {FATAL_PASS}:
        os.kill(os.getpid(), signal.SIGKILL)

folder, model = Path(sys.argv[1]), Path(sys.argv[2])
recipe, teacher = tiny_recipe(folder, model), watched(model, watch)
run_training(teacher, open_samples(teacher, recipe, print), recipe)
"""


def assert_same_run(recipe: Recipe, trained: Trained) -> None:
    """Weights, statistics, grids, bank and student are those of the uninterrupted run."""
    # The resolved recipe alone differs: it holds the path of its own run folder.
    assert different_files(recipe.run, trained.recipe.run) == ["recipe.yaml"]


def last_steps(recipe: Recipe) -> list[int]:
    return [line["step"] for line in whole_lines(recipe.run / "stats.jsonl")]


def finished(trained: Trained, recipe: Recipe) -> Recipe:
    """A copy of the finished run in the folder of another recipe, as if it had been made there."""
    shutil.copytree(trained.recipe.run, recipe.run)
    (recipe.run / "recipe.yaml").write_text(recipe.resolved(), "utf-8")
    return recipe


def checkpoint_of(recipe: Recipe, step: int) -> Path:
    return recipe.run / "checkpoints" / f"step-{step:08d}"


def test_a_run_killed_between_checkpoints_repeats_bit_for_bit(
    tiny_sdxl: Path, tmp_path: Path, trained: Trained
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tiny_sdxl)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    recipe, lines = read_recipe(tmp_path / "recipe.yaml"), list[str]()
    assert not (recipe.run / "student").exists()
    assert last_steps(recipe) == [0, 1, 2]  # a line past the checkpoint, which holds two steps
    distil(recipe, lines.append)
    assert f"resumed from {checkpoint_of(recipe, 2)}" in lines
    assert_same_run(recipe, trained)


def test_a_run_that_is_finished_does_nothing(trained: Trained, recipe: Recipe) -> None:
    finished(trained, recipe)
    lines: list[str] = []
    assert distil(recipe, lines.append) == recipe.run / "student"
    assert lines == [f"{recipe.run / 'student'} is trained already"]
    assert_same_run(recipe, trained)


def test_a_run_killed_while_saving_the_student_saves_it(trained: Trained, recipe: Recipe) -> None:
    finished(trained, recipe)
    (recipe.run / "student").rename(recipe.run / ".student.partial")
    (recipe.run / ".student.partial" / "model_index.json").unlink()
    distil(recipe, silent)
    assert_same_run(recipe, trained)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["student.safetensors", "optimizer.safetensors", "meta.json"])
def test_a_corrupt_checkpoint_is_named_and_the_last_good_one_used(
    trained: Trained, recipe: Recipe, name: str
) -> None:
    finished(trained, recipe)
    flip_a_bit(checkpoint_of(recipe, 6) / name)
    lines: list[str] = []
    distil(recipe, lines.append)
    assert any(
        line.startswith(f"checkpoint {checkpoint_of(recipe, 6)} is broken") for line in lines
    )
    assert f"resumed from {checkpoint_of(recipe, 4)}" in lines
    assert_same_run(recipe, trained)


def test_with_every_checkpoint_corrupt_training_starts_anew(
    trained: Trained, recipe: Recipe
) -> None:
    finished(trained, recipe)
    for step in (4, 6):
        flip_a_bit(checkpoint_of(recipe, step) / "ema.safetensors")
    lines: list[str] = []
    distil(recipe, lines.append)
    assert not any(line.startswith("resumed") for line in lines)
    assert_same_run(recipe, trained)


def test_a_torn_line_and_lines_past_the_checkpoint_are_written_anew(
    trained: Trained, recipe: Recipe
) -> None:
    finished(trained, recipe)
    shutil.rmtree(checkpoint_of(recipe, 6))
    stats = recipe.run / "stats.jsonl"
    stats.write_text(stats.read_text() + '{"step": 6, "lo')
    distil(recipe, silent)
    assert last_steps(recipe) == list(range(6))
    assert_same_run(recipe, trained)


@contextmanager
def small_disk() -> Iterator[Callable[[], None]]:
    """Gives a call from which on no file of this process may grow beyond half a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_resumes(
    tiny_sdxl: Path, recipe: Recipe, trained: Trained
) -> None:
    passes: list[Tensor] = []
    with small_disk() as fill:

        def watch(x0: Tensor, *_: object) -> None:
            passes.append(x0)
            if len(passes) == FATAL_PASS:
                fill()

        teacher = watched(tiny_sdxl, watch)
        samples = open_samples(teacher, recipe, silent)
        with pytest.raises(CheckpointError, match=r"step-00000004 could not .*too large") as error:
            run_training(teacher, samples, recipe, silent)
    assert str(error.value).endswith("earlier ones are untouched")
    assert [path.name for path in (recipe.run / "checkpoints").iterdir()] == ["step-00000002"]
    lines: list[str] = []
    distil(recipe, lines.append)
    assert f"resumed from {checkpoint_of(recipe, 2)}" in lines
    assert_same_run(recipe, trained)


def poisoned(samples: Samples) -> Samples:
    nothing = torch.full_like(samples.latents[:], torch.nan)
    return Samples(samples.prompts, samples.conditions, nothing, samples.members)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    teacher: SdxlTeacher, recipe: Recipe, trained: Trained
) -> None:
    finished(trained, recipe)
    shutil.rmtree(checkpoint_of(recipe, 6))
    samples = poisoned(open_samples(teacher, recipe, silent))
    with pytest.raises(TrainingError) as error:
        run_training(teacher, samples, recipe, silent)
    assert str(error.value) == (
        "the loss is nan at step 4; training stopped before it could harm the student; the last"
        f" good checkpoint is {checkpoint_of(recipe, 4)}."
        " Begin another run folder with a lower train.learning_rate or train.clip_norm"
    )
    assert last_steps(recipe) == [0, 1, 2, 3]
    distil(recipe, silent)
    assert_same_run(recipe, trained)


def test_a_loss_that_is_no_number_at_once_says_that_nothing_is_kept(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe
) -> None:
    with pytest.raises(TrainingError, match=r"nan at step 0; .*there is no checkpoint yet"):
        run_training(teacher, poisoned(samples), recipe, silent)
    assert not (recipe.run / "student").exists()


def test_another_seed_is_another_student(tiny_sdxl: Path, tmp_path: Path, trained: Trained) -> None:
    other = tiny_recipe(tmp_path, tiny_sdxl, "train.seed=1")
    distil(other, silent)
    assert "student/unet/diffusion_pytorch_model.safetensors" in different_files(
        other.run, trained.recipe.run
    )
