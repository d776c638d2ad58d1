"""How a picture is brought to the size that a protocol asks for.

What a distance says depends on the filter, so each is named: published figures were made by these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cut_square(picture: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    return cut_middle(picture, min(picture.size))


def cut_middle(picture: Image.Image, side_px: int) -> Image.Image:
    """The middle of side_px x side_px pixels, not resized; the whole where one side is shorter.

    A middle between two pixels is rounded to an even margin, as torchvision's crops are.
    """
    if picture.size == (side_px, side_px) or min(picture.size) < side_px:
        return picture
    left, top = (round((side - side_px) / 2) for side in picture.size)
    return picture.crop((left, top, left + side_px, top + side_px))


def squared(picture: Image.Image, side_px: int) -> Image.Image:
    """The largest square in the middle, resized to side_px by Lanczos' filter."""
    square = cut_square(picture)
    if square.size == (side_px, side_px):
        return square
    return square.resize((side_px, side_px), Image.Resampling.LANCZOS)


def cleanly_resized(picture: Image.Image, side_px: int) -> NDArray[np.float32]:
    """Resized by a bicubic filter that sees all pixels: [side_px, side_px, 3] in 0 to 255.

    As clean-fid does (arXiv 2104.11222): each channel by itself, in float and not rounded.
    """
    if picture.size == (side_px, side_px):
        return np.asarray(picture, np.float32)
    channels = [
        np.asarray(Image.fromarray(plane).resize((side_px, side_px), Image.Resampling.BICUBIC))
        for plane in np.asarray(picture, np.float32).transpose(2, 0, 1)
    ]
    return np.stack(channels, axis=-1).clip(0, 255)
