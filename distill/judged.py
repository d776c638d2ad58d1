"""Evaluation by a judge: caption accuracy, Fréchet distance, mode coverage, time per picture."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill.generators import Generator, digest_of
from distill.judge import Judge, Picture
from distill.metrics import frechet_distance, mode_coverage, shares
from distill.recipe import Evaluate
from distill.teachers.teacher import Teacher

REFERENCE_ROUNDS = 4  # reference pictures of each caption
TIMED_RUNS = 9
Figures = dict[str, dict[str, Any]]
Report = Callable[[str], None]
Shares = dict[str, dict[str, float]]


def judged(
    ways: Sequence[Generator],
    known: Mapping[str, dict[str, Any]],
    teacher: Teacher,
    judge: Judge,
    settings: Evaluate,
    report: Report,
) -> Figures:
    """Figures of every generator by name; those `known` of the same generator are taken over."""
    captions = judge.captions(settings.captions, settings.seed)
    new = [way for way in ways if known.get(way.name, {}).get("sha256") != way.sha256]
    reference = reference_attributes(judge, captions, settings) if new else np.empty(0)
    figures: Figures = {}
    for way in ways:
        if way in new:
            figures[way.name] = measure(way, teacher, judge, captions, reference, settings)
        else:
            figures[way.name] = known[way.name]
            report(f"{way.name}: measured before")
    add_mode_coverage(figures)
    return figures


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
