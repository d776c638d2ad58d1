"""Grids of pictures as PNG files, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

GAP_PX = 2


def save_grid(pictures: Tensor, columns: int, path: Path, scale: int = 1) -> None:
    """Writes pictures [n, H, W, 3] uint8 in rows of `columns` on white, enlarged `scale` times."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full(
        (rows * (height + GAP_PX) + GAP_PX, columns * (width + GAP_PX) + GAP_PX, 3), 255, np.uint8
    )
    for index, picture in enumerate(pictures.numpy()):
        row, column = divmod(index, columns)
        top, left = GAP_PX + row * (height + GAP_PX), GAP_PX + column * (width + GAP_PX)
        sheet[top : top + height, left : left + width] = picture
    image = Image.fromarray(sheet)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
