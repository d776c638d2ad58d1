"""Optimization profiles: one per picture size, each for every batch from 1 to the largest.

A shape is a tuple of lengths, the batch first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.errors import EngineError
from export.signature import Signature, Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """`shapes`: for each input its least, its tuned and its largest shape."""

    name: str  # of the picture size: "1024x1024"
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def to_json(self) -> dict[str, Any]:
        """Tuples become lists."""
        shapes = {name: [list(shape) for shape in triple] for name, triple in self.shapes.items()}
        return {"name": self.name, "shapes": shapes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """The inverse of `to_json`."""
        shapes = {
            name: (tuple(least), tuple(tuned), tuple(largest))
            for name, (least, tuned, largest) in value["shapes"].items()
        }
        return cls(value["name"], shapes)


def make_profiles(
    signature: Signature, max_batch: int, opt_batch: int | None = None
) -> tuple[Profile, ...]:
    """One profile per size, the default first, tuned for `opt_batch` (the largest if None)."""
    tuned = max_batch if opt_batch is None else opt_batch
    if not 1 <= tuned <= max_batch:
        raise EngineError(f"opt_batch is {tuned}; it must lie between 1 and max_batch {max_batch}")
    batches = (1, tuned, max_batch)
    profiles = []
    for width, height in signature.sizes:
        inputs = signature.at((width, height)).inputs
        shapes = {
            tensor.name: tuple((batch, *_closed(tensor)) for batch in batches) for tensor in inputs
        }
        profiles.append(Profile.from_json({"name": f"{width}x{height}", "shapes": shapes}))
    return tuple(profiles)


def _closed(tensor: Tensor) -> Shape:
    """The shape without the batch, all of it known."""
    assert None not in tensor.shape, f"{tensor} has open dimensions at a fixed size"
    return tuple(length for length in tensor.shape if length is not None)
