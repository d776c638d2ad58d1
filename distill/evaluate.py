"""Evaluation by a judge: caption accuracy, Fréchet distance, mode coverage, time per picture.

Three generators stand side by side on the same captions and seeds: the teacher in its many guided
steps, the teacher in one step, and the student in one step. The result is `evaluate.json` and a
contact sheet; what an earlier call measured on the same models is not measured again.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from distill.contact_sheet import save_contact_sheet
from distill.judge import Judge, Picture, load_judge
from distill.metrics import frechet_distance, mode_coverage, shares
from distill.recipe import Evaluate, Recipe
from distill.stats import write_whole
from distill.student import level_of
from distill.teachers.teacher import Condition, Teacher, weights_digest

REFERENCE_ROUNDS = 4  # reference pictures of each caption
TIMED_RUNS = 9
SHEET = "contact-sheet.png"
Report = Callable[[str], None]
Shares = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Generator:
    """A way to make latents of conditions and seeds, and what it is called in the table."""

    name: str
    sha256: str  # of everything that its pictures depend on
    latents: Callable[[Condition, Sequence[int]], Tensor]


def generators(teacher: Teacher, student: nn.Module | None, recipe: Recipe) -> list[Generator]:
    """The teacher in many steps and in one, and the student if there is one."""
    steps, guidance = recipe.teacher.steps, recipe.teacher.guidance_scale
    last = teacher.last_level
    weights = teacher.sampling_digest() + teacher.picture_digest()
    found = [
        Generator(
            f"teacher, {steps} steps",
            digest_of(weights, steps, guidance),
            lambda c, s: teacher.sample(c, s, steps, guidance),
        ),
        Generator(
            "teacher, 1 step", digest_of(weights, last), one_step(teacher, teacher.denoiser, last)
        ),
    ]
    if student is not None:
        level = level_of(teacher, recipe)
        own = weights_digest(student.state_dict())
        found.append(
            Generator(
                "student, 1 step",
                digest_of(weights, own, level),
                one_step(teacher, student, level),
            )
        )
    return found


def digest_of(*parts: object) -> str:
    """sha256 over the text of the parts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def one_step(
    teacher: Teacher, denoiser: nn.Module, level: float
) -> Callable[[Condition, Sequence[int]], Tensor]:
    """A denoiser as a generator in one unguided call at `level`."""

    @torch.no_grad()
    def latents(condition: Condition, seeds: Sequence[int]) -> Tensor:
        noise = teacher.noise(seeds)
        return teacher.one_step(denoiser, noise, level, condition.to(teacher.device))

    return latents


def run_evaluation(
    teacher: Teacher, student: nn.Module | None, recipe: Recipe, report: Report = print
) -> dict[str, Any]:
    """Measures every generator; writes `evaluate.json` and `contact-sheet.png` in the run folder.

    Returns what `evaluate.json` holds: figures by generator, and how they were measured.

    Raises:
        JudgeError: the judge is missing or incomplete.
    """
    settings = recipe.evaluate
    assert settings is not None, "the recipe has no evaluate section"
    assert settings.judge is not None, "the recipe names no judge"
    judge = load_judge(settings.judge)
    path = recipe.run / "evaluate.json"
    protocol = protocol_of(settings)
    known = read_known(path, protocol)
    captions = judge.captions(settings.captions, settings.seed)
    ways = generators(teacher, student, recipe)
    new = [way for way in ways if known.get(way.name, {}).get("sha256") != way.sha256]
    reference = reference_attributes(judge, captions, settings) if new else np.empty(0)
    figures: dict[str, dict[str, Any]] = {}
    for way in ways:
        if way in new:
            figures[way.name] = measure(way, teacher, judge, captions, reference, settings)
        else:
            figures[way.name] = known[way.name]
            report(f"{way.name}: measured before")
    add_mode_coverage(figures)
    result = {"protocol": protocol, "generators": figures}
    recipe.run.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
    if new or not (recipe.run / SHEET).is_file():
        shown = [*captions[:3], *captions[-3:], *judge.vague_captions()[:6:2]]
        save_sheet(ways, teacher, shown, recipe)
    return result


def reference_attributes(
    judge: Judge, captions: Sequence[str], settings: Evaluate
) -> np.ndarray[Any, Any]:
    """Attributes of several rounds of real pictures of the captions: [rounds * captions, D]."""
    return np.array(
        [
            judge.attributes(picture)
            for number in range(REFERENCE_ROUNDS)
            for picture in judge.reference(captions, settings.seed + 1 + number)
        ]
    )


def protocol_of(settings: Evaluate) -> dict[str, Any]:
    """What figures depend on beside the generator; other figures are not comparable."""
    assert settings.judge is not None, "the recipe names no judge"
    return {
        "captions": settings.captions,
        "vague_seeds": settings.vague_seeds,
        "seed": settings.seed,
        "judge_sha256": digest_of(
            *(p.read_text("utf-8") for p in sorted(settings.judge.parent.glob("*.py")))
        ),
    }


def read_known(path: Path, protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of an earlier call under the same protocol."""
    if not path.is_file():
        return {}
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError:
        return {}
    if not isinstance(before, dict) or before.get("protocol") != protocol:
        return {}
    return dict(before["generators"])


def measure(
    way: Generator,
    teacher: Teacher,
    judge: Judge,
    captions: Sequence[str],
    reference: np.ndarray[Any, Any],
    settings: Evaluate,
) -> dict[str, Any]:
    """All figures of one generator."""
    pictures = paint(way, teacher, captions, settings)
    right = [judge.right(c, p) for c, p in zip(captions, pictures, strict=True)]
    half = (len(captions) + 1) // 2  # the judge lists captions of one object first
    seen = np.array([judge.attributes(picture) for picture in pictures])
    figures = {
        "sha256": way.sha256,
        "caption_accuracy": statistics.fmean(right),
        "caption_accuracy_first_half": statistics.fmean(right[:half]),
        "caption_accuracy_second_half": statistics.fmean(right[half:] or right),
        "frechet_distance": frechet_distance(seen, reference),
        "ms_per_picture": time_per_picture_ms(way, teacher, captions[0]),
    }
    if settings.vague_seeds:
        figures["mode_shares"] = vague_shares(way, teacher, judge, settings)
    return figures


def paint(
    way: Generator, teacher: Teacher, captions: Sequence[str], settings: Evaluate
) -> list[Picture]:
    """One picture of each caption; the seeds count up from the protocol's."""
    pictures: list[Picture] = []
    bar = tqdm(total=len(captions), desc=way.name, unit="img", disable=None, leave=False)
    with bar:
        for start in range(0, len(captions), settings.batch):
            texts = captions[start : start + settings.batch]
            first = settings.seed + start
            seeds = range(first, first + len(texts))
            latents = way.latents(teacher.encode(texts), seeds)
            pictures.extend(teacher.decode(latents).numpy())
            bar.update(len(texts))
    return pictures


def vague_shares(way: Generator, teacher: Teacher, judge: Judge, settings: Evaluate) -> Shares:
    """By vague caption and mode, the share of `vague_seeds` pictures that show it."""
    found: Shares = {}
    for caption in judge.vague_captions():
        pictures = paint(way, teacher, [caption] * settings.vague_seeds, settings)
        found[caption] = shares([judge.mode(caption, p) for p in pictures], judge.modes(caption))
    return found


def add_mode_coverage(figures: Mapping[str, dict[str, Any]]) -> None:
    """Mode coverage of every generator, against the shares of the first: the many-step teacher."""
    expected = next(iter(figures.values())).get("mode_shares")
    if expected is not None:
        for one in figures.values():
            one["mode_coverage"] = mode_coverage(one["mode_shares"], expected)


def time_per_picture_ms(way: Generator, teacher: Teacher, caption: str) -> float:
    """Median time from text to the bytes of a PNG, one picture at a time, in torch."""
    times = []
    for seed in range(TIMED_RUNS + 1):
        start = time.perf_counter()
        latents = way.latents(teacher.encode([caption]), [seed])
        buffer = io.BytesIO()
        Image.fromarray(teacher.decode(latents)[0].numpy()).save(buffer, "PNG", compress_level=1)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])  # the first is a warm-up


def save_sheet(
    ways: Sequence[Generator], teacher: Teacher, captions: Sequence[str], recipe: Recipe
) -> None:
    """All generators side by side: a row a caption, four seeds each, the same seeds for all."""
    condition = teacher.encode(captions).repeated(4)
    seeds = [seed for _ in captions for seed in range(4)]
    blocks = [teacher.decode(way.latents(condition, seeds)) for way in ways]
    save_contact_sheet(
        [way.name for way in ways],
        captions,
        [block.view(len(captions), 4, *block.shape[1:]) for block in blocks],
        recipe.run / SHEET,
    )


def table(result: Mapping[str, Any]) -> str:
    """The figures as text, one generator a line."""
    head = ("", "caption accuracy", "Fréchet distance", "mode coverage", "ms/picture")
    rows = [head]
    for name, figures in result["generators"].items():
        coverage = figures.get("mode_coverage")
        rows.append(
            (
                name,
                f"{100 * figures['caption_accuracy']:.1f} %",
                f"{figures['frechet_distance']:.3f}",
                "-" if coverage is None else f"{100 * coverage:.1f} %",
                f"{figures['ms_per_picture']:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    cells = [
        [
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in cells)
