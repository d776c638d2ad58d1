"""Grids and contact sheets: every picture is in its place, whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.contact_sheet import LABEL_PX, MARGIN_PX, save_contact_sheet
from distill.grids import save_grid


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 250, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_a_grid_has_its_pictures_in_rows_on_white(tmp_path: Path) -> None:
    five = pictures(5, 4, 6, 3)
    save_grid(five, 3, tmp_path / "new" / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert sheet.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    for index, picture in enumerate(five):
        top, left = 2 + index // 3 * 6, 2 + index % 3 * 8
        assert np.array_equal(sheet[top : top + 4, left : left + 6], picture.numpy())
    assert (sheet[8:, 18:] == 255).all()  # the sixth place is empty
    assert (sheet[:2] == 255).all()


def test_a_grid_can_be_enlarged_without_blurring(tmp_path: Path) -> None:
    save_grid(pictures(2, 4, 4, 3), 2, tmp_path / "one.png")
    save_grid(pictures(2, 4, 4, 3), 2, tmp_path / "three.png", scale=3)
    one, three = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "three"))
    assert np.array_equal(three, one.repeat(3, axis=0).repeat(3, axis=1))


def test_a_contact_sheet_has_a_block_for_each_generator(tmp_path: Path) -> None:
    blocks = [pictures(3, 2, 8, 10, 3), 249 - pictures(3, 2, 8, 10, 3)]
    captions = ["a red circle", "blue", "green"]
    save_contact_sheet(["teacher", "student"], captions, blocks, tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    width, height = 2 * (10 + 2) + MARGIN_PX, LABEL_PX + 8 + 4
    assert sheet.shape == (LABEL_PX + MARGIN_PX + 3 * height, MARGIN_PX + 2 * width, 3)
    for column, block in enumerate(blocks):
        for row in range(3):
            top = LABEL_PX + MARGIN_PX + row * height + LABEL_PX
            for seed in range(2):
                left = MARGIN_PX + column * width + seed * 12
                shown = sheet[top : top + 8, left : left + 10]
                assert np.array_equal(shown, block[row, seed].numpy())
    assert (sheet[:LABEL_PX] < 128).any()  # the names are written above


def test_a_contact_sheet_needs_a_name_a_block_and_a_caption_a_row(tmp_path: Path) -> None:
    block = pictures(3, 2, 8, 10, 3)
    with pytest.raises(AssertionError, match="one"):
        save_contact_sheet(["one", "two"], ["a", "b", "c"], [block], tmp_path / "sheet.png")
    with pytest.raises(AssertionError, match="3"):
        save_contact_sheet(["one"], ["a", "b"], [block], tmp_path / "sheet.png")
