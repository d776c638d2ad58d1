"""What an evaluation keeps of pictures that stream by, and the figures it makes of it.

Memory does not grow with their number: means and covariances, and the features of the first
10,000 for the figures that compare every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.feature_networks import Clip, Inception
from distill.fidelity import (
    Gaussian,
    Moments,
    clip_cosines,
    clip_score,
    gaussian_distance,
    neighbour_figures,
)
from distill.picture_shapes import cleanly_resized, cut_middle, squared
from distill.presets import CLIP_PX, NEIGHBOUR_IMAGES, Preset


@dataclass(frozen=True)
class Statistics:
    """What pictures are compared by; a reference file knows the first alone."""

    whole: Gaussian
    patch: Gaussian | None = None
    rows: Tensor | None = None  # [n, D] float32, n up to NEIGHBOUR_IMAGES


class Tally:
    """Takes in pictures, and keeps of them what the preset compares."""

    def __init__(self, inception: Inception, clip: Clip | None, preset: Preset) -> None:
        self._inception, self._clip, self._preset = inception, clip, preset
        self._whole, self._patch = Moments(), Moments()
        self._rows: list[Tensor] = []
        self._cosines: list[Tensor] = []

    @property
    def count(self) -> int:
        """Pictures so far."""
        return self._whole.count

    def add(self, pictures: Sequence[Image.Image], captions: Sequence[str] | None = None) -> None:
        """Takes in RGB pictures of any size; with captions, for the CLIP score too."""
        preset = self._preset
        squares = [squared(picture, preset.size_px) for picture in pictures]
        features = self._features(squares, preset.network_px)
        missing = NEIGHBOUR_IMAGES - self.count
        if missing > 0:
            self._rows.append(features[:missing].cpu())
        self._whole.add(features)
        if preset.patch_px is not None:
            middles = [cut_middle(picture, preset.patch_px) for picture in pictures]
            self._patch.add(self._features(middles, preset.patch_px))
        if self._clip is not None and captions is not None:
            small = [squared(picture, CLIP_PX) for picture in pictures]
            cosines = clip_cosines(self._clip.pictures(small), self._clip.texts(captions))
            self._cosines.append(cosines.cpu())

    def _features(self, pictures: Sequence[Image.Image], side_px: int | None) -> Tensor:
        if side_px is None:
            sized = [np.asarray(picture) for picture in pictures]
        else:
            sized = [cleanly_resized(picture, side_px) for picture in pictures]
        return self._inception(torch.from_numpy(np.stack(sized)))

    def statistics(self) -> Statistics:
        """What was kept. At least two pictures must have been taken in."""
        patch = self._patch.gaussian() if self._preset.patch_px is not None else None
        return Statistics(self._whole.gaussian(), patch, torch.cat(self._rows))

    def clip_figures(self) -> dict[str, float]:
        """`clip_score` and the plain mean `clip_cosine`, where captions were given."""
        if not self._cosines:
            return {}
        cosines = torch.cat(self._cosines)
        return {"clip_score": clip_score(cosines), "clip_cosine": cosines.mean().item()}


def fidelity_figures(made: Statistics, real: Statistics, device: torch.device) -> dict[str, float]:
    """`fid`, and `patch_fid` and the neighbours' figures where the reference has what they need."""
    figures = {"fid": gaussian_distance(made.whole, real.whole)}
    if made.patch is not None and real.patch is not None:
        figures["patch_fid"] = gaussian_distance(made.patch, real.patch)
    if made.rows is not None and real.rows is not None:
        figures |= neighbour_figures(real.rows.to(device), made.rows.to(device))
    return figures
