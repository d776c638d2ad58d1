"""Pictures from files or bytes, cut to a square and resized: uint8 [H, W, 3] -> [3, H, W].

How a picture is made small decides what its statistics are, so the way is a setting: `lanczos` for
captioned pictures and ImageNet as EDM (arXiv 2206.00364) prepared it, `adm` for ImageNet as ADM did
(arXiv 2105.05233).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.data import DataError

Resize = Literal["lanczos", "adm"]
BROKEN = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)  # Pillow's
ORIENTATION = 0x112  # the tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(
    content: Path | bytes,
    size_px: int,
    resize: Resize,
    name: object = None,
    upright: bool = False,
) -> Tensor:
    """A picture as uint8 [3, size_px, size_px]; `upright`: turned as its EXIF data says.

    DataError: it is missing or is no picture.
    """
    rgb = open_rgb(content, name or content, upright)
    if rgb.size != (size_px, size_px):
        rgb = RESIZERS[resize](rgb, size_px)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def open_rgb(content: Path | bytes, name: object, upright: bool = False) -> Image.Image:
    """A picture as RGB, as large as it is. DataError: it is missing or is no picture."""
    if not content:
        raise DataError(f"picture {name} cannot be read: it is empty")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with Image.open(source) as image:
            rgb = as_rgb(image)
            turn = turn_of(image) if upright else None
    except UnidentifiedImageError as error:
        raise DataError(f"picture {name} cannot be read: cannot identify its format") from error
    except BROKEN as error:
        raise DataError(f"picture {name} cannot be read: {error}") from error
    return rgb if turn is None else rgb.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright by its EXIF data; broken data say nothing."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent becomes white, of 16 bits the upper 8 are kept.

    ValueError: the numbers of such a picture have no known range.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers without a known range (mode {image.mode})")
    if image.mode.startswith("I;16"):  # Pillow's own conversion makes white of all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def unit_range(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return pictures.float().div(127.5).sub(1)


def lanczos(image: Image.Image, size_px: int) -> Image.Image:
    """The middle square, resized in one step; the filter sees nothing of what was cut off."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size_px, size_px), Image.Resampling.LANCZOS)


def adm(image: Image.Image, size_px: int) -> Image.Image:
    """Halved by boxes while twice too large, resized bicubic by its short side, then cut."""
    while min(image.size) >= 2 * size_px:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, Image.Resampling.BOX)
    scale = size_px / min(image.size)
    fitted = (round(image.width * scale), round(image.height * scale))
    image = image.resize(fitted, Image.Resampling.BICUBIC)
    left, top = (image.width - size_px) // 2, (image.height - size_px) // 2
    return image.crop((left, top, left + size_px, top + size_px))


RESIZERS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"lanczos": lanczos, "adm": adm}
