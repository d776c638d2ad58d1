"""The sizes of pictures that one graph draws: named lists, what a model can draw, and checks."""

import math
import re
from collections.abc import Sequence

from export.errors import SizeError
from export.graph.to_onnx import TRACED
from export.model.student import Student
from export.signature import Size

LARGEST_PX = 4096

# Training sizes of SDXL: multiples of 64 with about 1024 x 1024 pixels (2307.01952, appendix I),
# by the shorter side; each is meant upright and lying.
_SDXL = {
    512: (2048, 1984, 1920, 1856),
    576: (1792, 1728, 1664),
    640: (1600, 1536),
    704: (1472, 1408, 1344),
    768: (1344, 1280),
    832: (1216, 1152),
    896: (1152, 1088),
    960: (1088, 1024),
}
_LYING = tuple((long, short) for short, longs in _SDXL.items() for long in longs)
NAMED: dict[str, tuple[Size, ...]] = {
    "sdxl": ((1024, 1024), *_LYING, *((width, height) for height, width in _LYING)),
}


def parse_sizes(text: str) -> tuple[Size, ...]:
    """`1024x1024,1152x896` (width x height, the default first), or a named list such as `sdxl`."""
    if text in NAMED:
        return NAMED[text]
    sizes = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})\s*", item)
        if match is None:
            raise SizeError(
                f"sizes has {item.strip()!r}; allowed is WIDTHxHEIGHT in pixels, several with "
                f"commas between them, or a named list: {', '.join(NAMED)}"
            )
        sizes.append((int(match[1]), int(match[2])))
    return tuple(sizes)


def check_sizes(student: Student, sizes: Sequence[Size]) -> tuple[Size, ...]:
    """The sizes, if the student can draw each; none stands for the student's own."""
    if not sizes:
        return ((student.size_px, student.size_px),)
    unit, drawn_px = multiple_px(student), _drawn_px(student)
    largest_px = min(LARGEST_PX, drawn_px)
    for width, height in sizes:
        if width % unit or height % unit or not (unit <= min(width, height)):
            raise SizeError(
                f"size {width}x{height} does not suit {student.folder}: "
                f"width and height must be multiples of {unit}"
            )
        if max(width, height) > largest_px:
            raise SizeError(f"size {width}x{height} is too large; a side is at most {largest_px}")
        if list(sizes).count((width, height)) > 1:
            raise SizeError(f"size {width}x{height} is named twice; each is given once")
    traced_px = max(TRACED) * math.gcd(*(side for size in sizes for side in size))
    if len(sizes) > 1 and traced_px > drawn_px:
        raise SizeError(
            f"the sizes have {traced_px // max(TRACED)} as their common divisor, and the graph is "
            f"traced with {max(TRACED)} of it, which must be at most {drawn_px:g}; add a size that "
            f"makes the divisor smaller"
        )
    return tuple(sizes)


def multiple_px(student: Student) -> int:
    """What both sides of a picture must be divisible by.

    The decoder's halvings, and the UNet's or the side of a transformer's patch.
    """
    scale = int(student.pipeline.vae_scale_factor)
    if student.family.denoiser == "transformer":
        return scale * int(student.denoiser.config.patch_size)
    blocks = student.denoiser.down_blocks
    halvings = sum(getattr(block, "downsamplers", None) is not None for block in blocks)
    return int(scale * 2**halvings)


def _drawn_px(student: Student) -> float:
    """The longest side at all: a transformer has embeddings for so many positions a side."""
    positions = student.denoiser.config.get("pos_embed_max_size")
    return positions * multiple_px(student) if positions else math.inf
