"""Runs side by side: one table and one sheet, and no comparison of what differs in kind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_protocol import CAPTIONS, coco_recipe
from tiny_training import draw, silent

from distill.compare import CompareError, compare_runs, resized
from distill.student import make_student, save_student
from distill.teachers.sdxl import SdxlTeacher

FIGURES = {"sha256": "", "fid": 12.3456, "recall": 0.5, "clip_score": 30.0}


def result_of(sha256: str, teacher: str = "t", seed: int = 40, **figures: Any) -> dict[str, Any]:
    """What an `evaluate.json` may hold: a teacher and a student by features alone."""
    own = {
        "teacher, 2 steps": {**FIGURES, "sha256": teacher},
        "student, 1 step": {**FIGURES, "sha256": sha256, **figures},
    }
    return {
        "protocol": {},
        "generators": {},
        "features": {"protocol": {"seed": seed}, "generators": own},
    }


@pytest.fixture
def runs(tmp_path: Path, tiny_sdxl: Path, teacher: SdxlTeacher) -> list[Path]:
    """Two runs of the tiny teacher, whose students differ."""
    folders = []
    for number, name in enumerate(("first", "second")):
        recipe = coco_recipe(tmp_path / name, tiny_sdxl)
        student = make_student(teacher)
        with torch.no_grad():
            next(student.parameters()).add_(number)
        save_student(teacher, student.state_dict(), 399, recipe.run / "student")
        (recipe.run / "recipe.yaml").write_text(recipe.resolved())
        write(recipe.run, result_of(name, fid=number + 0.5))
        folders.append(recipe.run.rename(tmp_path / f"run-{name}"))
    return folders


def write(run: Path, result: dict[str, Any]) -> None:
    (run / "evaluate.json").write_text(json.dumps(result))


def test_the_table_has_a_row_a_student_and_shared_teachers_once(
    runs: list[Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    table = compare_runs(runs, tmp_path / "out", lines.append)
    assert table.splitlines() == [
        "|  | FID | recall | CLIP score |",
        "| --- | ---: | ---: | ---: |",
        "| run-first: teacher, 2 steps | 12.35 | 0.500 | 30.00 |",
        "| run-first | 0.50 | 0.500 | 30.00 |",
        "| run-second | 1.50 | 0.500 | 30.00 |",
    ]
    assert (tmp_path / "out" / "comparison.md").read_text() == table + "\n"
    assert "comparison.png are written" in lines[0]


def test_the_sheet_has_a_column_a_run_of_the_same_seeds(
    runs: list[Path], tmp_path: Path, teacher: SdxlTeacher
) -> None:
    compare_runs(runs, tmp_path, silent)
    with Image.open(tmp_path / "comparison.png") as image:
        sheet = np.asarray(image).astype(int)
    block = 4 * 66 + 12
    assert sheet.shape == (32 + len(CAPTIONS) * 88, 12 + 2 * block, 3)
    condition = teacher.encode([CAPTIONS[1]])
    latents = teacher.one_step(teacher.denoiser, draw(1, 4, 8, 8, seed=2), 399, condition)
    top, left = 32 + 88 + 20, 12 + 2 * 66
    first = sheet[top : top + 64, left : left + 64]
    assert np.abs(first - teacher.decode(latents)[0].numpy()).max() <= 1
    second = sheet[top : top + 64, left + block : left + block + 64]
    assert np.abs(first - second).max() > 5


def test_figures_of_another_protocol_are_not_put_side_by_side(
    runs: list[Path], tmp_path: Path
) -> None:
    write(runs[1], result_of("second", seed=41))
    with pytest.raises(
        CompareError, match=r"run-first and run-second .* with another seed; evalua"
    ):
        compare_runs(runs, tmp_path, silent)
    assert not (tmp_path / "comparison.md").exists()


def test_a_judges_figures_have_a_table_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        own = {"student, 1 step": {"sha256": run.name, "caption_accuracy": 0.75}}
        judged = {"protocol": {"judge": 1}, "generators": own}
        write(run, {**result_of(run.name), **judged})
    first, second = compare_runs(runs, tmp_path, silent).split("\n\n")
    assert first.splitlines()[-1] == "| run-second | 75.0 % |"
    assert second.startswith("|  | FID")


@pytest.mark.parametrize("missing", ["evaluate.json", "recipe.yaml", "student"])
def test_a_folder_that_is_no_whole_run_is_named(
    runs: list[Path], tmp_path: Path, missing: str
) -> None:
    path = runs[1] / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CompareError, match=rf"run .*run-second has no {missing}: distill .* makes"):
        compare_runs(runs, tmp_path, silent)


def test_runs_are_named_once_and_have_figures(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="each is named once"):
        compare_runs([runs[0], runs[0]], tmp_path, silent)
    with pytest.raises(CompareError, match="runs to compare are none"):
        compare_runs([], tmp_path, silent)
    write(runs[0], {"protocol": {}, "generators": {}})
    with pytest.raises(CompareError, match=r"no figures in .*run-first/evaluate\.json"):
        compare_runs(runs[:1], tmp_path, silent)


def test_runs_of_the_same_name_are_told_apart_by_their_paths(
    runs: list[Path], tmp_path: Path
) -> None:
    moved = []
    for number, run in enumerate(runs):
        (tmp_path / str(number)).mkdir()
        moved.append(run.rename(tmp_path / str(number) / "run"))
    assert f"| {moved[1]} | 1.50" in compare_runs(moved, tmp_path, silent)


def test_a_run_without_evaluation_in_its_recipe_has_no_captions(
    runs: list[Path], tmp_path: Path
) -> None:
    path = runs[0] / "recipe.yaml"
    plain = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**plain, "evaluate": None}))
    with pytest.raises(CompareError, match="no recipe of the runs has an evaluate section"):
        compare_runs(runs[:1], tmp_path, silent)


def test_pictures_of_another_size_are_fitted() -> None:
    block = torch.full((2, 3, 8, 8, 3), 7, dtype=torch.uint8)
    assert resized(block, 4, 6).shape == (2, 3, 6, 4, 3)
    assert (resized(block, 4, 6) == 7).all()
    assert resized(block, 8, 8) is block
