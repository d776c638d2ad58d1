"""A contact sheet: generators side by side, a caption a row, the same seeds for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN_PX = 12
LABEL_PX = 20


def save_contact_sheet(
    names: Sequence[str], captions: Sequence[str], blocks: Sequence[Tensor], path: Path
) -> None:
    """Writes blocks, one per name, each [captions, seeds, H, W, 3] uint8, as one PNG."""
    assert len(names) == len(blocks), (names, len(blocks))
    rows, seeds, height, width, _ = blocks[0].shape
    assert rows == len(captions), (rows, len(captions))
    block_width = seeds * (width + 2) + MARGIN_PX
    row_height = LABEL_PX + height + 4
    size = (MARGIN_PX + len(blocks) * block_width, LABEL_PX + MARGIN_PX + rows * row_height)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (name, block) in enumerate(zip(names, blocks, strict=True)):
        left = MARGIN_PX + column * block_width
        pen.text((left, 6), name, "black", font)
        for row, caption in enumerate(captions):
            top = LABEL_PX + MARGIN_PX + row * row_height
            if column == 0:
                pen.text((left, top), caption, "dimgray", font)
            for seed, picture in enumerate(np.asarray(block[row])):
                place = (left + seed * (width + 2), top + LABEL_PX)
                sheet.paste(Image.fromarray(picture), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
