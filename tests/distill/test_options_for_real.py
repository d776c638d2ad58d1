"""bitsandbytes and W&B themselves, by the public command; `make options` fetches them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import write_recipe
from torch import nn

from distill.budget import state_bytes
from distill.recipe import read_recipe

HERE = Path(__file__).parent
LIBRARIES = HERE.parents[1] / ".venv" / "options"
SETTINGS = (
    "train.optimizer=adamw8bit",
    "train.trackers=[wandb]",
    "train.final_learning_rate=1",  # so that a longer run begins as a shorter one does
)

if not (LIBRARIES / "installed").is_file():
    pytest.skip("there is no .venv/options; `make options` makes it", allow_module_level=True)


def with_libraries(*words: object) -> str:
    """What Python says of these words, with the libraries to import and W&B offline."""
    environment = {**os.environ, "PYTHONPATH": str(LIBRARIES), "WANDB_MODE": "offline"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(recipe: Path, steps: int) -> Path:
    """The run folder of `distill train`, as far as `steps`."""
    sets = [part for value in (*SETTINGS, f"train.steps={steps}") for part in ("--set", value)]
    with_libraries("-m", "singlepass", "train", recipe, *sets, "--resume-changed")
    return recipe.parent / "run"


@pytest.fixture(scope="module")
def run(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps in one go."""
    return trained(write_recipe(tmp_path_factory.mktemp("whole"), tiny_sdxl), 6)


def test_the_optimisers_state_takes_what_a_dry_run_says_of_8_bits(run: Path) -> None:
    state = load_file(run / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    assert any(value.dtype == torch.uint8 for value in state.values())
    held = sum(value.nbytes for name, value in state.items() if ".qmap" not in name)
    student = load_file(run / "checkpoints" / "step-00000006" / "student.safetensors")
    train = read_recipe(run / "recipe.yaml").train
    said = sum(state_bytes(nn.Parameter(weight), train) for weight in student.values())
    assert held == pytest.approx(said, rel=0.02)  # a dry run counts 4 bytes for each step number


def test_a_run_with_8_bits_resumes_bit_for_bit(run: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_sdxl)
    for steps in (4, 6):
        again = trained(recipe, steps)
    one, other = (
        load_file(folder / "student" / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (run, again)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_wandb_is_told_the_lines_of_the_statistics_and_the_settings(run: Path) -> None:
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    lines = with_libraries(HERE / "wandb_log.py", *files).splitlines()
    told: list[dict[str, Any]] = [json.loads(line) for line in lines]
    figures = [line["history"] for line in told if "history" in line]
    record = [json.loads(line) for line in (run / "stats.jsonl").read_text("utf-8").splitlines()]
    assert [line["_step"] for line in figures] == [0, 1, 2, 3, 4, 5]
    for line, kept in zip(figures, record, strict=True):
        assert {name: line[name] for name in kept if name != "step"} == {
            name: value for name, value in kept.items() if name != "step"
        }
    settings = {name: value for line in told for name, value in line.get("config", {}).items()}
    assert settings["drift.groups"] == 2
    assert settings["train.optimizer"] == "adamw8bit"
