"""Pictures from files or bytes, cut to a square and resized: uint8 [H, W, 3] -> [3, H, W].

How a picture is made small decides what its statistics are, so the way is a setting: `lanczos` for
captioned pictures and ImageNet as EDM (arXiv 2206.00364) prepared it, `adm` for ImageNet as ADM did
(arXiv 2105.05233).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.data import DataError

Resize = Literal["lanczos", "adm"]


def read_picture(
    content: Path | bytes, size_px: int, resize: Resize, name: object = None
) -> Tensor:
    """A picture as uint8 [3, size_px, size_px]. DataError: it is missing or is no picture."""
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with Image.open(source) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"picture {name or content} cannot be read: {error}") from error
    if rgb.size != (size_px, size_px):
        rgb = RESIZERS[resize](rgb, size_px)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


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
