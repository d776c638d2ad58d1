"""Check of the data first: are the real pictures, as training reads them, those of the reference?

Whoever prepares pictures in another way than the reference's authors (another filter, another cut)
trains toward other pictures and can never score well. One independent run reached 12.0 in the place
of 1.4 for that reason alone. So measure FID of the real pictures before any training.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.feature_networks import load_inception
from distill.fidelity import gaussian_distance
from distill.presets import preset_of
from distill.recipe import Recipe, RecipeError
from distill.reference import loader_at, picture_files, statistics_for, tallied
from distill.run import pick_device
from distill.stats import write_whole
from distill.tally import Tally
from distill.teachers.opening import load_teacher

ALIKE = 1.0  # FID up to which pictures count as the reference's own
ENOUGH = 10_000  # pictures below which FID is biased upward too much to tell
RESULT = "reference-check.json"
Report = Callable[[str], None]


def check_reference(recipe: Recipe, report: Report = print) -> dict[str, Any]:
    """FID of real pictures, as training reads them, against `evaluate.reference`.

    Up to `evaluate.images` of them, drawn at random; written to `reference-check.json` in the run
    folder. Returns `fid`, `images` and whether they count as `alike`; warns where they do not.

    Raises:
        RecipeError: the recipe names no preset, no reference, or no folder of real pictures.
        NetworkError, DataError, TeacherError: a file is missing or is not what it must be.
    """
    settings = recipe.evaluate
    if settings is None or settings.preset is None or settings.reference is None:
        raise RecipeError("the check needs evaluate.preset and evaluate.reference (an .npz)")
    folder = real_folder(recipe)
    device = pick_device(recipe.train.device)
    inception, preset = load_inception(settings.inception, device), preset_of(settings)
    reference = statistics_for(inception, settings.reference, preset)
    size_px = load_teacher(recipe.teacher.model, device, recipe.teacher.config).size_px
    tally = Tally(inception, None, preset)
    paths = picture_files(folder)[: preset.images]
    found = tallied(paths, loader_at(recipe, size_px), settings.batch, tally, report).whole
    fid = gaussian_distance(found, reference)
    result = {"fid": fid, "images": tally.count, "alike": fid <= ALIKE}
    recipe.run.mkdir(parents=True, exist_ok=True)
    write_whole(recipe.run / RESULT, json.dumps(result, indent=1) + "\n")
    report(verdict(fid, tally.count, folder))
    return result


def real_folder(recipe: Recipe) -> Path:
    """Where the pictures are that training reads; else those that evaluation reads."""
    assert recipe.evaluate is not None, "the recipe has no evaluate section"
    folder = recipe.evaluate.real
    if recipe.positives.source != "teacher" and recipe.positives.folder is not None:
        folder = recipe.positives.folder
    if folder is None:
        raise RecipeError("the check needs real pictures: positives.folder or evaluate.real")
    return folder


def verdict(fid: float, images: int, folder: Path) -> str:
    """One sentence about an FID of real pictures."""
    figure = f"FID of {images} real pictures of {folder} against the reference: {fid:.2f}"
    if fid <= ALIKE:
        return figure
    few = f" ({images} are few: {ENOUGH} or more tell better)" if images < ENOUGH else ""
    return (
        f"warning: {figure}, above {ALIKE:g}{few}: pictures prepared like that are not the"
        " reference's; see positives.resize, and how the folder was made"
    )
