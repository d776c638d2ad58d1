"""Evaluation: what a student's pictures are like, beside its teacher's.

Three generators stand side by side on the same conditions and seeds: the teacher in its many guided
steps, the teacher in one step, and the student in one step. A judge measures them (`judged`), or a
published protocol of features (`protocol`), or both. The result is `evaluate.json` and a contact
sheet; what an earlier call measured on the same models in the same way is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.contact_sheet import save_contact_sheet
from distill.feature_networks import Clip, Inception, load_clip, load_inception
from distill.figures_table import text_table
from distill.floor import below_floor, floor_warning
from distill.generators import Generator, generators
from distill.judge import load_judge
from distill.judged import judged, protocol_of
from distill.presets import Preset, preset_of, texts_of
from distill.prompts import fitting
from distill.protocol import measure_by_features, protocol_of_features
from distill.recipe import Evaluate, Recipe
from distill.reference import reference_of
from distill.stats import write_whole
from distill.teachers.teacher import Teacher

SHEET = "contact-sheet.png"
RESULT = "evaluate.json"
SHEET_SEEDS = 4
Report = Callable[[str], None]
table = text_table


class EvaluationError(ValueError):
    """An evaluation that asks for what is not there; the text names it."""


def run_evaluation(
    teacher: Teacher, student: nn.Module | None, recipe: Recipe, report: Report = print
) -> dict[str, Any]:
    """Measures every generator; writes `evaluate.json` and `contact-sheet.png` in the run folder.

    Returns what `evaluate.json` holds (docs/evaluation.md).

    Raises:
        JudgeError: the judge is missing or incomplete.
        NetworkError, DataError: a file of the preset is missing or is not what it must be.
        EvaluationError: the recipe measures the student alone, and there is none yet; or the preset
            is of captions and the teacher of classes, or the other way about.
    """
    settings = recipe.evaluate
    assert settings is not None, "the recipe has no evaluate section"
    before = read_result(recipe.run / RESULT)
    ways = generators(teacher, student, recipe)
    result: dict[str, Any] = {"protocol": {}, "generators": {}}
    if settings.judge is not None:
        judge, protocol = load_judge(settings.judge), protocol_of(settings)
        known = known_in(before, protocol)
        figures = judged(ways, known, teacher, judge, settings, report)
        result = {"protocol": protocol, "generators": figures}
    if (below := below_floor(recipe.run / "stats.jsonl")) is not None:
        result["below_floor"] = below
        if below:
            report(floor_warning(below))
    recipe.run.mkdir(parents=True, exist_ok=True)
    if settings.preset is not None:
        add_features(result, before, ways, teacher, recipe, report)
    write_result(recipe.run / RESULT, result)
    if figures_of(result) != figures_of(before) or not (recipe.run / SHEET).is_file():
        save_sheet(ways, teacher, sheet_texts(settings), recipe.run / SHEET)
    return result


def check_kind(settings: Evaluate, preset: Preset, teacher: Teacher) -> None:
    """EvaluationError unless the preset's texts are what the teacher is told."""
    if (preset.classes is None) != teacher.prompted:
        kinds = ("captions", "classes") if teacher.prompted else ("classes", "captions")
        raise EvaluationError(
            f"evaluate.preset is {settings.preset}, which is of {kinds[1]}, but the teacher draws"
            f" {kinds[0]}"
        )
    if preset.classes is not None and preset.classes > teacher.classes:
        raise EvaluationError(
            f"evaluate.classes is {preset.classes}, but the teacher has {teacher.classes} classes"
        )


def add_features(
    result: dict[str, Any],
    before: Mapping[str, Any],
    ways: Sequence[Generator],
    teacher: Teacher,
    recipe: Recipe,
    report: Report,
) -> None:
    """Puts the preset's figures in `result`, which is written after every generator."""
    settings = recipe.evaluate
    assert settings is not None, "the recipe has no evaluate section"
    chosen = [way for way in ways if way.kind in settings.generators]
    if not chosen:
        raise EvaluationError("evaluate.generators is student alone, but there is no student yet")
    preset = preset_of(settings)
    check_kind(settings, preset, teacher)
    inception, clip = open_networks(settings, teacher.device)
    texts = texts_of(settings, preset)
    protocol = protocol_of_features(settings, preset, texts, inception, clip)
    known = known_in(before.get("features", {}), protocol)
    figures: dict[str, Any] = {}
    result["features"] = {"protocol": protocol, "generators": figures}
    new = [way for way in chosen if known.get(way.name, {}).get("sha256") != way.sha256]
    real = reference_of(recipe, preset, inception, report) if new else None
    told = fitting(teacher, texts, "truncate", report if new else silent)
    for way in chosen:
        if way in new:
            assert real is not None, way.name
            figures[way.name] = measure_by_features(
                way, teacher, texts, (inception, clip), preset, real, settings, told
            )
            write_result(recipe.run / RESULT, result)
        else:
            figures[way.name] = known[way.name]
            report(f"{way.name}: measured before")
    if clip is not None and clip.cut_captions:
        report(f"{clip.cut_captions} captions are longer than CLIP reads and were cut for it")


def silent(text: str) -> None:
    """The report of what was said before."""


def open_networks(settings: Evaluate, device: torch.device) -> tuple[Inception, Clip | None]:
    """The feature networks that a recipe names. NetworkError: one cannot be opened."""
    clip = None if settings.clip is None else load_clip(settings.clip, device)
    return load_inception(settings.inception, device), clip


def read_result(path: Path) -> dict[str, Any]:
    """What an earlier call wrote; nothing if it cannot be read."""
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return before if isinstance(before, dict) else {}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes `evaluate.json`, whole or not at all."""
    write_whole(path, json.dumps(result, indent=1, sort_keys=True) + "\n")


def known_in(before: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of an earlier call under the same protocol."""
    return dict(before["generators"]) if before.get("protocol") == protocol else {}


def figures_of(result: Mapping[str, Any]) -> tuple[object, object]:
    """All figures by generator, of a judge and of a preset."""
    return result.get("generators"), result.get("features", {}).get("generators")


def sheet_texts(settings: Evaluate) -> list[str]:
    """What a contact sheet shows: of a judge's captions, or of a preset's classes or captions."""
    if settings.judge is not None:
        judge = load_judge(settings.judge)
        captions = judge.captions(settings.captions, settings.seed)
        return [*captions[:3], *captions[-3:], *judge.vague_captions()[:6:2]]
    texts = list(dict.fromkeys(texts_of(settings, preset_of(settings))))
    return texts[:: -(-len(texts) // 8)]


def sheet_block(way: Generator, teacher: Teacher, texts: Sequence[str]) -> Tensor:
    """Four pictures of each text, the same seeds for all: uint8 [texts, 4, H, W, 3]."""
    told = fitting(teacher, texts, "truncate", silent)
    conditions = [teacher.encode([told[text]]).repeated(SHEET_SEEDS) for text in texts]
    return torch.stack([teacher.decode(way.latents(c, range(SHEET_SEEDS))) for c in conditions])


def save_sheet(
    ways: Sequence[Generator], teacher: Teacher, texts: Sequence[str], path: Path
) -> None:
    """All generators side by side: a row a text, four seeds each."""
    blocks = [sheet_block(way, teacher, texts) for way in ways]
    save_contact_sheet([way.name for way in ways], texts, blocks, path)
