"""Measuring one generator by a published protocol: pictures stream into a tally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image
from tqdm import tqdm

from distill.feature_networks import Clip, Inception
from distill.generators import Generator, digest_of
from distill.presets import CLIP_PX, NEIGHBOUR_IMAGES, Preset
from distill.recipe import Evaluate
from distill.reference import reference_digests
from distill.tally import Statistics, Tally, fidelity_figures
from distill.teachers.teacher import Teacher


def protocol_of_features(
    settings: Evaluate,
    preset: Preset,
    texts: Sequence[str],
    inception: Inception,
    clip: Clip | None,
) -> dict[str, Any]:
    """What figures depend on beside the generator; other figures are not comparable."""
    return {
        "preset": settings.preset,
        **asdict(preset),
        "neighbour_images": NEIGHBOUR_IMAGES,
        "clip_px": CLIP_PX,
        "seed": settings.seed,
        "texts_sha256": digest_of(*texts),
        "inception_sha256": inception.sha256,
        "clip_sha256": None if clip is None else clip.sha256,
        **reference_digests(settings),
    }


def measure_by_features(
    way: Generator,
    teacher: Teacher,
    texts: Sequence[str],
    networks: tuple[Inception, Clip | None],
    preset: Preset,
    real: Statistics,
    settings: Evaluate,
    told: Mapping[str, str],
) -> dict[str, Any]:
    """All figures of one generator: picture i is of text i, and its seed counts up from `seed`.

    `told` is what the teacher is given of each text, the whole of it or as much as it takes.
    """
    tally = Tally(*networks, preset)
    captions = None if preset.classes is not None else texts
    bar = tqdm(total=len(texts), desc=way.name, unit="img", disable=None, leave=False)
    with bar:
        for start in range(0, len(texts), settings.batch):
            part = slice(start, min(start + settings.batch, len(texts)))
            seeds = range(settings.seed + part.start, settings.seed + part.stop)
            condition = teacher.encode([told[text] for text in texts[part]])
            pictures = teacher.decode(way.latents(condition, seeds))
            drawn = [Image.fromarray(picture) for picture in pictures.numpy()]
            tally.add(drawn, None if captions is None else captions[part])
            bar.update(len(drawn))
    figures = fidelity_figures(tally.statistics(), real, teacher.device)
    return {"sha256": way.sha256, "images": tally.count, **figures, **tally.clip_figures()}
