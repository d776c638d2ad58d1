"""Published protocols of evaluation: how many pictures, of what, at which size, by which filter.

imagenet64  50,000 pictures, 50 of each of 1,000 classes, against the statistics of the real ones;
            the network resizes by itself (EDM, arXiv 2206.00364; classes in turn as DMD2)
coco10k     10,000 captions of COCO-2014, a picture each: the square in the middle by Lanczos to
            512 px, then as clean-fid resizes; patch FID on the 299 px in the middle of the picture
            at its full size; CLIP score at 256 px (DMD2, arXiv 2405.14867)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.data import DataError
from distill.prompts import every_prompt
from distill.recipe import Evaluate

NEIGHBOUR_IMAGES = 10_000  # precision and recall compare every pair: no more of each kind
CLIP_PX = 256


@dataclass(frozen=True)
class Preset:
    """What a protocol fixes; sizes in pixels."""

    images: int
    size_px: int  # of the square that pictures are cut and resized to
    network_px: int | None  # cleanly resized to for the network; None: it resizes by itself
    patch_px: int | None  # the middle that is compared at full size; None: not measured
    classes: int | None  # of a class-conditional model; None: captions


PRESETS = {
    "imagenet64": Preset(50_000, 64, None, None, 1000),
    "coco10k": Preset(10_000, 512, 299, 299, None),
}


def preset_of(settings: Evaluate) -> Preset:
    """The protocol that a recipe names, with what the recipe changes of it."""
    assert settings.preset is not None, "the recipe names no preset"
    published = PRESETS[settings.preset]
    return Preset(
        settings.images or published.images,
        published.size_px,
        published.network_px,
        published.patch_px,
        settings.classes or published.classes,
    )


def texts_of(settings: Evaluate, preset: Preset) -> Sequence[str]:
    """What picture i is of: classes in turn, so that any first part holds all alike, or captions.

    A caption that comes twice is drawn twice: COCO has such, and the protocol counts captions.

    DataError: the file of captions is missing, broken, or has too few.
    """
    if preset.classes is not None:
        return [str(i % preset.classes) for i in range(preset.images)]
    assert settings.prompts is not None, "the recipe's validation asks for it"
    try:
        prompts = every_prompt(settings.prompts)
    except DataError as error:
        raise DataError(str(error).replace("positives.prompts", "evaluate.prompts", 1)) from None
    if len(prompts) < preset.images:
        raise DataError(
            f"evaluate.prompts: {settings.prompts} has {len(prompts)} captions;"
            f" {preset.images} are asked for (evaluate.images)"
        )
    return prompts[: preset.images]
