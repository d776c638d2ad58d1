"""Reads a picture of the shapes world by image analysis: which objects it shows, and how well.

No network is involved. Background = median of the frame; what differs from it falls into connected
components; of each, the soft coverage gives width, height, area and colour, and the ideal outline
of that width and place, drawn again, must fit it. What fits nothing is read as None, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import world
from numpy.typing import NDArray
from scipy import ndimage

FOREGROUND = 0.16  # difference from the background in any channel, of 1
SMALLEST_AREA_PX = 12
WIDTHS_PX = {"small": (11.0, 18.0), "large": (19.0, 29.0)}
EXTENTS = {"triangle": (0.40, 0.655), "circle": (0.655, 0.885), "square": (0.885, 1.10)}
COLOUR_TOLERANCE = 0.28  # Euclidean, in RGB of 1
PLACE_TOLERANCE_PX = 6.0
MISFIT = 0.20  # of the ideal's area

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One object as read; `thing` has None wherever the reading fits nothing of this world."""

    thing: world.Object
    x_px: float
    y_px: float
    width_px: float
    height_px: float
    extent: float  # area over width x height: square 1, circle 0.785, triangle 0.5
    colour: tuple[float, float, float]
    misfit: float  # of coverage against the best of the three ideal outlines, over its area


@dataclass(frozen=True)
class Reading:
    """A whole picture as read; objects from the upper left to the lower right."""

    objects: tuple[Seen, ...]
    background: tuple[float, float, float]
    roughness: float  # root mean square deviation of the background

    @property
    def scene(self) -> world.Scene:
        return tuple(seen.thing for seen in self.objects)


def read(picture: world.Picture) -> Reading:
    """Reads a picture [64, 64, 3] uint8."""
    assert picture.shape == (world.SIZE_PX, world.SIZE_PX, 3), picture.shape
    image = picture.astype(np.float64) / 255
    frame = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    frame = np.concatenate([frame, image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)])
    background = np.median(frame, axis=0)
    difference = np.abs(image - background).max(-1)
    labels, count = ndimage.label(difference > FOREGROUND)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [i for i in range(1, count + 1) if areas[i] >= SMALLEST_AREA_PX]
    objects = [_read_object(image, background, difference, labels == i) for i in kept]
    far = ~ndimage.binary_dilation(difference > FOREGROUND, iterations=2)
    roughness = float(np.sqrt(((image - background)[far] ** 2).mean())) if far.any() else 1.0
    objects.sort(key=lambda seen: seen.x_px + seen.y_px)
    return Reading(tuple(objects), _rgb(background), roughness)


def _read_object(
    image: Field, background: Field, difference: Field, mask: NDArray[np.bool_]
) -> Seen:
    core = mask & (difference >= 0.8 * np.quantile(difference[mask], 0.8))
    colour = np.median(image[core], axis=0)
    reach = ndimage.binary_dilation(mask, iterations=1)
    axis = colour - background
    coverage = np.clip((image - background) @ axis / (axis @ axis), 0, 1) * reach
    width, height = float(coverage.sum(1).max()), float(coverage.sum(0).max())
    ys, xs = np.nonzero(mask)
    x, y = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    extent = float(coverage.sum() / (width * height))
    shape, misfit = _shape(coverage, x, y, (width + height) / 2, extent)
    size = _within(WIDTHS_PX, (width + height) / 2)
    thing = world.Object(size, _nearest_colour(colour), shape, _nearest_place(x, y))
    return Seen(thing, float(x), float(y), width, height, extent, _rgb(colour), misfit)


def _shape(
    coverage: Field, x: float, y: float, width: float, extent: float
) -> tuple[str | None, float]:
    """The shape whose extent and outline both fit, and the misfit of the best outline."""
    misfits = {shape: _misfit(shape, coverage, x, y, width / 2) for shape in world.SHAPES}
    best = min(misfits, key=misfits.__getitem__)
    fits = misfits[best] <= MISFIT and _within(EXTENTS, extent) == best
    return (best if fits else None), misfits[best]


def _misfit(shape: str, coverage: Field, x: float, y: float, radius: float) -> float:
    """Least difference from the ideal outline, over its area, half a pixel around the reading."""
    nudges = np.array(list(product((-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5), (0.0, 0.4))))
    dx, dy, grow = nudges.T[:, :, None, None]
    near = [slice(max(0, int(c - radius) - 3), int(c + radius) + 4) for c in (y, x)]  # all it fills
    beyond = coverage.sum() - coverage[near[0], near[1]].sum()
    coverage = coverage[near[0], near[1]]
    ys, xs = np.mgrid[0 : world.SIZE_PX, 0 : world.SIZE_PX][:, near[0], near[1]] + 0.5
    ideal = world.inside(shape, xs - x - dx, ys - y - dy, radius + grow)  # [18, h, w]
    misfits = (np.abs(ideal - coverage).sum((1, 2)) + beyond) / ideal.sum((1, 2))
    return float(misfits.min())


def _nearest_colour(colour: Field) -> str | None:
    distances = {n: float(np.linalg.norm(colour - rgb)) for n, rgb in world.COLOURS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= COLOUR_TOLERANCE else None


def _nearest_place(x: float, y: float) -> str | None:
    distances = {n: float(np.hypot(x - a, y - b)) for n, (a, b) in world.POSITIONS_PX.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= PLACE_TOLERANCE_PX else None


def _within(ranges: dict[str, tuple[float, float]], value: float) -> str | None:
    return next((name for name, (low, high) in ranges.items() if low <= value < high), None)


def _rgb(colour: Field) -> tuple[float, float, float]:
    red, green, blue = (float(channel) for channel in colour)
    return red, green, blue
