"""Several runs side by side: their figures as one table, their pictures as one contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.contact_sheet import save_contact_sheet
from distill.evaluate import RESULT, read_result, sheet_block, sheet_texts
from distill.figures_table import FEATURES, JUDGED, Cell, columns_in, markdown, rows_of
from distill.generators import Generator, one_step
from distill.recipe import Recipe, read_recipe
from distill.run import pick_device
from distill.stats import write_whole
from distill.student import level_of, load_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import Teacher

TABLE = "comparison.md"
SHEET = "comparison.png"
STUDENT = "student, 1 step"
MADE_BY = {RESULT: "evaluate", "recipe.yaml": "train", "student": "train"}  # the commands
Report = Callable[[str], None]


class CompareError(ValueError):
    """Runs that cannot be compared; the text names them and why."""


@dataclass(frozen=True)
class Run:
    """A run folder that has a student and its figures."""

    name: str
    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]


def compare_runs(folders: Sequence[Path], out: Path, report: Report = print) -> str:
    """Writes `comparison.md` and `comparison.png` into `out`; returns the table.

    Raises:
        CompareError: a folder is no run that was evaluated, or runs were measured differently.
        ValueError: a recipe, teacher or student cannot be opened.
    """
    runs = open_runs(folders)
    table = comparison(runs)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TABLE, table + "\n")
    save_comparison_sheet(runs, out / SHEET)
    report(f"{out / TABLE} and {out / SHEET} are written")
    return table


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Run folders by the shortest names that tell them apart. CompareError: one is none."""
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    if len(set(names)) < len(names) or not names:
        raise CompareError(f"runs to compare are {', '.join(names) or 'none'}; each is named once")
    runs = []
    for name, folder in zip(names, folders, strict=True):
        for needed, made_by in (
            (RESULT, "evaluate"),
            ("recipe.yaml", "train"),
            ("student", "train"),
        ):
            if not (folder / needed).exists():
                raise CompareError(f"run {folder} has no {needed}: distill {made_by} makes it")
        recipe = read_recipe(folder / "recipe.yaml")
        runs.append(Run(name, folder, recipe, read_result(folder / RESULT)))
    return runs


def comparison(runs: Sequence[Run]) -> str:
    """The figures of all runs as Markdown: a table of judges, a table of presets."""
    tables = [
        markdown(rows)
        for part, columns in (("", JUDGED), ("features", FEATURES))
        if (rows := part_rows(runs, part, columns))
    ]
    if not tables:
        raise CompareError(f"no figures in {', '.join(str(run.folder / RESULT) for run in runs)}")
    return "\n\n".join(tables)


def part_rows(
    runs: Sequence[Run], part: str, columns: Mapping[str, tuple[str, Cell]]
) -> list[tuple[str, ...]]:
    """Rows of a judge's figures (part "") or a preset's ("features"); none where no run has any.

    A teacher that several runs share has one row. CompareError: the runs' protocols differ.
    """
    measured = {run.name: run.result.get(part, {}) if part else run.result for run in runs}
    measured = {name: own for name, own in measured.items() if own.get("generators")}
    if not measured:
        return []
    check_protocols(measured)
    rows: dict[str, Mapping[str, Any]] = {}
    seen: set[str] = set()
    for name, own in measured.items():
        for way, figures in own["generators"].items():
            if figures["sha256"] not in seen:
                seen.add(figures["sha256"])
                rows[name if way == STUDENT else f"{name}: {way}"] = figures
    return rows_of(rows, columns_in(rows, columns))


def check_protocols(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """CompareError unless all figures were measured in the same way."""
    first, *others = measured
    protocol = measured[first]["protocol"]
    for name in others:
        own = measured[name]["protocol"]
        differing = sorted(k for k in own.keys() | protocol.keys() if own.get(k) != protocol.get(k))
        if differing:
            raise CompareError(
                f"runs {first} and {name} were evaluated with another {', '.join(differing)};"
                " evaluate both in the same way"
            )


def save_comparison_sheet(runs: Sequence[Run], path: Path) -> None:
    """The students side by side: a column a run, the same texts and seeds for all."""
    settings = next((run.recipe.evaluate for run in runs if run.recipe.evaluate is not None), None)
    if settings is None:
        raise CompareError("no recipe of the runs has an evaluate section that names captions")
    texts = sheet_texts(settings)
    blocks: list[Tensor] = []
    opened: dict[Path, Teacher] = {}
    for run in runs:
        model, config = run.recipe.teacher.model, run.recipe.teacher.config
        if model not in opened:
            opened = {model: load_teacher(model, pick_device(run.recipe.train.device), config)}
        blocks.append(sheet_block(student_of(run, opened[model]), opened[model], texts))
    height, width = blocks[0].shape[2:4]
    fitted = [resized(block, int(width), int(height)) for block in blocks]
    save_contact_sheet([run.name for run in runs], texts, fitted, path)


def student_of(run: Run, teacher: Teacher) -> Generator:
    """A run's student as a generator."""
    student = load_student(teacher, run.folder / "student")
    way = one_step(teacher, student, level_of(teacher, run.recipe))
    return Generator(run.name, "student", "", way)


def resized(block: Tensor, width: int, height: int) -> Tensor:
    """Pictures [texts, seeds, H, W, 3] at another size, so that runs of two sizes fit one sheet."""
    if tuple(block.shape[2:4]) == (height, width):
        return block
    pictures = [
        np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS))
        for p in block.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(pictures)).view(*block.shape[:2], height, width, 3)
