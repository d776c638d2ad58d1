"""Two processes train the student of one with every teacher, and with what saves memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import several
from several import farthest, run_in, said, write_recipe_of
from tiny import save_tiny_sdxl
from tiny_classes import save_tiny_edm
from tiny_flow import save_tiny_sd35

from distill.recipe import Recipe, read_recipe

SETTINGS = (
    "train={steps: 4, learning_rate: 3e-5, warmup_steps: 2, precision: fp32, accumulate: 2,"
    " ema_decay: 0.9, sample_steps: 2, checkpoint_steps: 2, trackers: [], parallel: PARALLEL}"
)
EDM = ["drift.layers=[down_blocks.1.attentions.0, mid_block]", "teacher.guidance_scale=1"]
FLOW = ["drift.layers=[transformer_blocks.0/2, transformer_blocks.2]"]
WAYS: list[tuple[Callable[[Path], Path], list[str]]] = [
    (save_tiny_edm, EDM),
    (save_tiny_sd35, FLOW),
    (save_tiny_sdxl, ["student.lora={rank: 2}"]),
    (save_tiny_sdxl, ["train.checkpointing=true", "train.ema_device=cpu"]),
    (save_tiny_sdxl, ["drift.cached_draws=2"]),
]
NAMES = ["edm", "flow", "lora", "checkpointing", "cached"]


def trained_by(
    count: int,
    folder: Path,
    teacher: Path,
    settings: list[str],
    body: several.Body = several.train_whole,
) -> Recipe:
    path = write_recipe_of(folder, teacher, settings)
    if "teacher.guidance_scale=1" in settings:
        (folder / "prompts.txt").write_text("0\n1\n3\n")
    recipe = read_recipe(path)
    assert run_in(count, body, path) == [0] * count, said(recipe, 0)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("save", "settings"), WAYS, ids=NAMES)
def test_two_train_the_student_of_one(
    tmp_path: Path, save: Callable[[Path], Path], settings: list[str], parallel: str
) -> None:
    teacher = save(tmp_path / "teacher")
    all_of_them = [SETTINGS.replace("PARALLEL", parallel), *settings]
    alone, two = (trained_by(n, tmp_path / str(n), teacher, all_of_them) for n in (1, 2))
    assert farthest(alone, two) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_that_are_compiled_train_the_student_of_one_that_is_not(
    tmp_path: Path, parallel: str, checkpointing: str
) -> None:
    teacher = save_tiny_edm(tmp_path / "teacher")
    settings = [SETTINGS.replace("PARALLEL", parallel), *EDM]
    alone = trained_by(1, tmp_path / "1", teacher, settings)
    settings += ["train.compile=true", f"train.checkpointing={checkpointing}"]
    two = trained_by(2, tmp_path / "2", teacher, settings, several.train_traced)
    assert farthest(alone, two) < 1e-5
    assert "recompile_limit" not in said(two, 0)  # from which on it would run as it is
