"""The contact sheet of the worst cases: what it should be, what it is, and the difference.

H x W picture size in pixels. One line per case: a label, then three pictures side by side.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from export.errors import ExportError
from export.gate.cases import Pictures
from export.gate.parity import NAMES, Worst

SIDE_PX = 192  # the longer side of a picture on the sheet
GAP_PX, LABEL_PX, FONT_PX = 8, 34, 13
COLUMNS = 3
PROMPT_CHARACTERS = 60


def write_sheet(worst: Sequence[Worst], file: Path) -> None:
    """Write the cases, the worst first, as a PNG; `ExportError` when the disk will not take it."""
    width = COLUMNS * (SIDE_PX + GAP_PX) + GAP_PX
    line = SIDE_PX + LABEL_PX + GAP_PX
    sheet = Image.new("RGB", (width, len(worst) * line + GAP_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, case in enumerate(worst):
        top = number * line + GAP_PX
        gain = gain_of(case.levels)
        pen.multiline_text((GAP_PX, top), label(case, gain), fill="black", font=font, spacing=2)
        three = case.expected, case.got, magnified(case.expected, case.got, gain)
        for column, pixels in enumerate(three):
            left = column * (SIDE_PX + GAP_PX) + GAP_PX
            sheet.paste(_fitted(pixels), (left, top + LABEL_PX))
    try:
        sheet.save(file, "PNG")
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"the contact sheet {file} cannot be written: {reason}") from error


def label(case: Worst, gain: int) -> str:
    """Two lines; characters beyond ASCII are written as escapes, which every font has."""
    prompt = ascii(case.prompt)
    if len(prompt) > PROMPT_CHARACTERS:
        prompt = f"{prompt[: PROMPT_CHARACTERS - 3]}..."
    width, height = case.size
    return (
        f"{NAMES[case.reference]} | got | difference x{gain}: {case.levels} levels, "
        f"row {case.slot} of batch {case.batch}, {width}x{height}\n"
        f"seed {case.seed}, prompt {prompt}"
    )


def gain_of(levels: int) -> int:
    """The factor that makes the largest difference just white."""
    return 255 // max(levels, 1)


def magnified(expected: Pictures, got: Pictures, gain: int) -> Pictures:
    """|expected - got| times `gain`, [H, W, 3] uint8."""
    gap = np.maximum(expected, got) - np.minimum(expected, got)
    levels: Pictures = (gap.astype(np.uint16) * gain).clip(0, 255).astype(np.uint8)
    return levels


def _fitted(pixels: Pictures) -> Image.Image:
    """The picture with its longer side SIDE_PX: enlarged in whole squares, or reduced."""
    picture = Image.fromarray(pixels)
    scale = SIDE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    kernel = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return picture.resize(size, kernel)
