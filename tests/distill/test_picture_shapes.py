"""Squares, middles and filters: where the pixels come from."""

import numpy as np
import pytest
from PIL import Image
from tiny_networks import random_pictures

from distill.picture_shapes import cleanly_resized, cut_middle, cut_square, squared


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "corner"),
    [((10, 4), (3, 0)), ((5, 9), (0, 2)), ((6, 6), (0, 0)), ((9, 4), (2, 0)), ((4, 11), (0, 4))],
)
def test_the_square_lies_in_the_middle(size: tuple[int, int], corner: tuple[int, int]) -> None:
    square = cut_square(numbered(*size))
    assert square.size == (min(size), min(size))
    assert square.getpixel((0, 0))[:2] == corner


def test_the_middle_keeps_its_pixels_and_a_small_picture_is_whole() -> None:
    assert cut_middle(numbered(10, 8), 4).getpixel((0, 0)) == (3, 2, 0)
    assert cut_middle(numbered(10, 8), 4).size == (4, 4)
    assert cut_middle(numbered(10, 3), 4).size == (10, 3)


def test_a_square_of_the_right_size_is_not_touched() -> None:
    (picture,) = random_pictures(1, 32, 32)
    assert squared(picture, 32) is picture
    assert cleanly_resized(picture, 32).tolist() == np.asarray(picture).tolist()


def test_squares_are_resized_by_lanczos() -> None:
    (picture,) = random_pictures(1, 60, 40)
    expected = picture.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(squared(picture, 16), expected)


def test_fine_stripes_become_grey_and_not_other_stripes() -> None:
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    small = cleanly_resized(Image.fromarray(stripes), 200)
    assert small.dtype == np.float32
    assert np.abs(small[:, 5:-5] - 127.5).max() < 3
    assert small.mean() == pytest.approx(127.5, abs=0.5)


def test_nothing_is_rounded_or_beyond_the_range() -> None:
    (picture,) = random_pictures(1, 300, 300)
    small = cleanly_resized(picture, 70)
    assert (small % 1 > 0.01).mean() > 0.5
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    large = cleanly_resized(Image.fromarray(edge), 64)
    assert large.min() == 0
    assert large.max() == 255
