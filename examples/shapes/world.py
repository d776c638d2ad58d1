"""The world of coloured shapes: scenes, their captions, and pictures of them drawn by code.

A scene is one or two objects on a light background. Everything that a caption can say (colour,
shape, size, position) is discrete; everything that it cannot (exact place, exact radius, shade,
background) varies continuously, so that a caption stands for a distribution and not for a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIZE_PX = 64
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.15, 0.65, 0.25),
    "blue": (0.15, 0.32, 0.86),
    "yellow": (0.93, 0.80, 0.12),
    "purple": (0.58, 0.20, 0.75),
    "black": (0.10, 0.10, 0.10),
}
SHAPES = ("circle", "square", "triangle")
RADII_PX = {"small": 7.0, "large": 12.0}  # half the width
POSITIONS_PX = {  # centre of the bounding box: x, y
    "left": (16.0, 32.0),
    "right": (48.0, 32.0),
    "top": (32.0, 16.0),
    "bottom": (32.0, 48.0),
    "middle": (32.0, 32.0),
}
PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
PAIRS = (("left", "right"), ("top", "bottom"))  # where two objects may stand

Picture = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class Object:
    """One object; an attribute that is None is left open (by a caption)."""

    size: str | None
    colour: str | None
    shape: str | None
    position: str | None

    @property
    def is_full(self) -> bool:
        """Whether nothing is left open."""
        return None not in (self.size, self.colour, self.shape, self.position)

    def allows(self, other: Object) -> bool:
        """Whether every attribute that this one states is the other's too."""
        mine = (self.size, self.colour, self.shape, self.position)
        theirs = (other.size, other.colour, other.shape, other.position)
        return all(m is None or m == t for m, t in zip(mine, theirs, strict=True))

    def completions(self) -> list[Object]:
        """The full objects that this one allows: the modes of its caption."""
        choices = (
            tuple(RADII_PX) if self.size is None else (self.size,),
            tuple(COLOURS) if self.colour is None else (self.colour,),
            SHAPES if self.shape is None else (self.shape,),
            tuple(POSITIONS_PX) if self.position is None else (self.position,),
        )
        return [Object(*choice) for choice in product(*choices)]

    def phrase(self) -> str:
        """The object in words, as a caption names it."""
        words = (
            "a",
            self.size,
            self.colour,
            self.shape or "shape",
            PHRASES.get(self.position or ""),
        )
        return " ".join(word for word in words if word)


Scene = tuple[Object, ...]


def caption(scene: Scene) -> str:
    """A scene in words."""
    return " and ".join(thing.phrase() for thing in scene)


def parse(text: str) -> Scene:
    """The scene that a caption describes; attributes it leaves open are None.

    Raises:
        ValueError: a word that this world does not know, or no object at all.
    """
    words_of_phrases = {word for phrase in PHRASES.values() for word in phrase.split()}
    known = {"a", "shape", *RADII_PX, *COLOURS, *SHAPES, *words_of_phrases}
    things = []
    for phrase in text.split(" and "):
        words = phrase.split()
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise ValueError(
                f"caption {text!r}: {unknown or 'an empty phrase'} is not of this world"
            )
        found = [
            next((w for w in words if w in kind), None)
            for kind in (RADII_PX, COLOURS, SHAPES, POSITIONS_PX)
        ]
        things.append(Object(*found))
    return tuple(things)


def full_singles() -> list[Scene]:
    """Every scene of one object: 2 sizes x 6 colours x 3 shapes x 5 positions."""
    return [(thing,) for thing in Object(None, None, None, None).completions()]


def random_scene(rng: np.random.Generator, two: float = 0.4) -> Scene:
    """A fully determined scene; with probability `two` it has two objects."""

    def any_of(names: Iterator[str] | tuple[str, ...]) -> str:
        names = tuple(names)
        return names[rng.integers(len(names))]

    def thing(position: str) -> Object:
        return Object(any_of(tuple(RADII_PX)), any_of(tuple(COLOURS)), any_of(SHAPES), position)

    if rng.random() < two:
        return tuple(thing(position) for position in PAIRS[rng.integers(len(PAIRS))])
    return (thing(any_of(tuple(POSITIONS_PX))),)


def random_caption(scene: Scene, rng: np.random.Generator, keep: float = 0.8) -> str:
    """A true caption of the scene: one object's attributes are each said with probability `keep`.

    Captions of two objects say everything, in either order.
    """
    if len(scene) == 2:
        return caption(scene if rng.random() < 0.5 else scene[::-1])
    thing = scene[0]
    said = [
        value if rng.random() < keep else None
        for value in (thing.size, thing.colour, thing.shape, thing.position)
    ]
    return caption((Object(*said),))


def complete(scene: Scene, rng: np.random.Generator) -> Scene:
    """A full scene drawn uniformly from those that a vague one allows."""
    options = [thing.completions() for thing in scene]
    return tuple(choices[rng.integers(len(choices))] for choices in options)


def draw(scene: Scene, rng: np.random.Generator) -> Picture:
    """A picture of a full scene, with everything that captions leave unsaid drawn from `rng`.

    Returns:
        Picture [64, 64, 3] uint8, edges antialiased by the signed distance to the outline.
    """
    ys, xs = np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5  # pixel centres
    background = np.clip(rng.uniform(0.86, 0.97) + rng.uniform(-0.015, 0.015, 3), 0, 1)
    canvas = np.broadcast_to(background, (SIZE_PX, SIZE_PX, 3)).copy()
    for thing in scene:
        assert thing.is_full, thing
        x0, y0 = np.array(POSITIONS_PX[thing.position]) + rng.uniform(-2, 2, 2)
        radius = RADII_PX[thing.size] * rng.uniform(0.92, 1.08)
        shade = np.clip(np.array(COLOURS[thing.colour]) + rng.uniform(-0.05, 0.05, 3), 0, 1)
        coverage = inside(thing.shape, xs - x0, ys - y0, radius)[..., None]
        canvas = canvas * (1 - coverage) + shade * coverage
    return (canvas * 255).round().astype(np.uint8)


def inside(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """How much of each pixel the shape covers, 0 to 1; x, y in pixels from the box's centre."""
    return np.clip(0.5 - _distance(shape, x, y, radius), 0, 1)


def _distance(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Signed distance to the outline in pixels, negative inside; x, y from the box's centre."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius
    assert shape == "triangle", shape  # upright, as high as wide
    slope = (2 * np.abs(x) - (y + radius)) / np.sqrt(5.0)
    return np.maximum(slope, y - radius)


def vague_captions() -> list[str]:
    """Captions that leave one or two attributes open, for measuring mode coverage.

    Twenty-four of them, each with at most ten modes, every attribute left open in several.
    """
    open_position = [f"a {s} {c} {f}" for s, c, f in _VAGUE_OBJECTS]
    open_colour = [f"a {s} {f} {PHRASES[p]}" for s, f, p in _VAGUE_COLOURS]
    open_look = [f"a {c} shape {PHRASES[p]}" for c, p in _VAGUE_LOOKS]
    open_size_and_position = [f"a {c} {f}" for c, f in _VAGUE_PLACES]
    return open_position + open_colour + open_look + open_size_and_position


_VAGUE_OBJECTS = (
    ("small", "red", "circle"),
    ("large", "green", "square"),
    ("small", "blue", "triangle"),
    ("large", "yellow", "circle"),
    ("small", "purple", "square"),
    ("large", "black", "triangle"),
)
_VAGUE_COLOURS = (
    ("small", "circle", "left"),
    ("large", "square", "right"),
    ("small", "triangle", "top"),
    ("large", "circle", "bottom"),
    ("small", "square", "middle"),
    ("large", "triangle", "left"),
)
_VAGUE_LOOKS = (
    ("red", "left"),
    ("green", "right"),
    ("blue", "top"),
    ("yellow", "bottom"),
    ("purple", "middle"),
    ("black", "right"),
)
_VAGUE_PLACES = (
    ("red", "square"),
    ("green", "triangle"),
    ("blue", "circle"),
    ("yellow", "triangle"),
    ("purple", "circle"),
    ("black", "square"),
)
