"""The judge of the shapes world: what `distill evaluate` asks (see docs/evaluation.md).

Everything is measured by the checker, which reads pictures by image analysis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import checker
import numpy as np
import world
from world import vague_captions

__all__ = ["attributes", "captions", "mode", "modes", "reference", "right", "vague_captions"]

# Units of the attributes, so that each counts about alike: the deviation of the drawn world.
UNITS = {"place": 12.0, "width": 5.0, "extent": 0.2, "colour": 0.3, "misfit": 0.05}


def captions(count: int, seed: int) -> list[str]:
    """Full captions, half of one object (every one of them before any twice), half of two."""
    rng = np.random.default_rng(seed)
    singles = world.full_singles()
    rounds = -(-count // (2 * len(singles)))
    chosen = [singles[i] for _ in range(rounds) for i in rng.permutation(len(singles))]
    chosen = chosen[: (count + 1) // 2]
    pairs = [world.random_scene(rng, two=1.0) for _ in range(count // 2)]
    return [world.caption(scene) for scene in (*chosen, *pairs)]


def right(caption: str, picture: world.Picture) -> bool:
    """Whether the picture shows exactly the objects that the caption names, as it names them.

    What a caption leaves open must still be of this world: a colour between two is never right.
    """
    wanted, seen = list(world.parse(caption)), checker.read(picture).scene
    if len(seen) != len(wanted) or not all(thing.is_full for thing in seen):
        return False
    orders = (seen, seen[::-1])
    return any(all(w.allows(s) for w, s in zip(wanted, order, strict=True)) for order in orders)


def modes(caption: str) -> list[str]:
    """Every full caption that a caption of one object allows."""
    (thing,) = world.parse(caption)
    return [world.caption((option,)) for option in thing.completions()]


def mode(caption: str, picture: world.Picture) -> str | None:
    """Which of its caption's modes the picture shows; None if none of them."""
    if not right(caption, picture):
        return None
    return world.caption(checker.read(picture).scene)


def attributes(picture: world.Picture) -> list[float]:
    """What the checker reads, as 23 numbers: two places for objects, then the background."""
    reading = checker.read(picture)
    numbers: list[float] = []
    for slot in range(2):
        if slot >= len(reading.objects):
            numbers += [0.0] * 9
            continue
        seen = reading.objects[slot]
        numbers += [seen.x_px / UNITS["place"], seen.y_px / UNITS["place"]]
        numbers += [seen.width_px / UNITS["width"], seen.height_px / UNITS["width"]]
        numbers += [seen.extent / UNITS["extent"], seen.misfit / UNITS["misfit"]]
        numbers += [channel / UNITS["colour"] for channel in seen.colour]
    background = [channel / UNITS["colour"] for channel in reading.background]
    return [*numbers, len(reading.objects) / 0.5, *background, reading.roughness / 0.02]


def reference(texts: Sequence[str], seed: int) -> Iterator[world.Picture]:
    """Pictures drawn by code, one for each full caption."""
    rng = np.random.default_rng(seed)
    for text in texts:
        yield world.draw(world.parse(text), rng)
