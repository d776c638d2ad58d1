"""Pictures of any size and mode become squares."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import write_pictures
from PIL import Image, ImageOps

from distill.data import DataError
from distill.pictures import read_picture, unit_range


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_is_read_to_the_bit(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 8, "lanczos")
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), noise(8, 8))
    assert torch.equal(picture, read_picture((tmp_path / "a.png").read_bytes(), 8, "adm"))


def test_the_unit_range_is_minus_one_to_one() -> None:
    assert unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(((unit_range(every) + 1) * 127.5).round().to(torch.uint8), every)


@pytest.mark.parametrize("way", ["lanczos", "adm"])
@pytest.mark.parametrize(("width", "height"), [(30, 10), (10, 30), (11, 10)])
def test_a_picture_is_cut_to_its_middle_square(
    tmp_path: Path, width: int, height: int, way: str
) -> None:
    pixels = noise(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 10, way).permute(1, 2, 0)  # type: ignore[arg-type]
    top, left = (height - 10) // 2, (width - 10) // 2
    assert np.array_equal(picture.numpy(), pixels[top : top + 10, left : left + 10])


@pytest.mark.parametrize("way", ["lanczos", "adm"])
def test_a_picture_of_another_size_and_mode_is_made_to_fit(tmp_path: Path, way: str) -> None:
    Image.new("L", (30, 20), 255).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 4, way)  # type: ignore[arg-type]
    assert torch.equal(picture, torch.full((3, 4, 4), 255, dtype=torch.uint8))


def test_lanczos_sees_the_middle_square_alone(tmp_path: Path) -> None:
    pixels = noise(39, 54)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    square = np.ascontiguousarray(pixels[:, (54 - 39) // 2 : (54 + 39) // 2])
    expected = Image.fromarray(square).resize((8, 8), Image.Resampling.LANCZOS)
    picture = read_picture(tmp_path / "a.png", 8, "lanczos").permute(1, 2, 0)
    assert np.array_equal(picture, expected)


def test_adm_halves_by_the_mean_of_two_by_two(tmp_path: Path) -> None:
    pixels = noise(16, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    halved = pixels.reshape(8, 2, 8, 2, 3).mean((1, 3))
    picture = read_picture(tmp_path / "a.png", 8, "adm").permute(1, 2, 0).numpy()
    assert np.abs(picture - halved).max() <= 1
    other = read_picture(tmp_path / "a.png", 8, "lanczos").permute(1, 2, 0).numpy()
    assert np.abs(other - halved).max() > 5


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = write_pictures(tmp_path / "pictures", 1) / "0.png"
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:3000])
    for name, cause in (("text", "cannot identify"), ("torn", "truncated"), ("no", "No such file")):
        with pytest.raises(DataError, match=rf"picture .*{name}\.png cannot be read: .*{cause}"):
            read_picture(tmp_path / f"{name}.png", 8, "lanczos")
    with pytest.raises(DataError, match="picture row 3 cannot be read: it is empty"):
        read_picture(b"", 8, "lanczos", "row 3")
    with pytest.raises(DataError, match=r"picture row 4 cannot be read: .*invalid literal"):
        read_picture(b"P6 4? 4 255 ", 8, "lanczos", "row 4")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say_where_that_is_asked_for(
    kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    content = saved(Image.fromarray(noise(8, 8)), kind, exif=exif)
    stored = Image.open(io.BytesIO(content))
    for upright, expected in ((False, stored), (True, ImageOps.exif_transpose(stored))):
        picture = read_picture(content, 8, "lanczos", upright=upright).permute(1, 2, 0)
        assert np.array_equal(picture, expected.convert("RGB"))


def test_broken_exif_data_say_nothing() -> None:
    content = saved(Image.new("RGB", (8, 8)), "WEBP", exif=b"Exif\0\0no data", lossless=True)
    assert not read_picture(content, 8, "lanczos", upright=True).any()


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (Image.new("RGBA", (8, 8), (10, 200, 30, 0)), "PNG", {}),
        (Image.new("RGBA", (8, 8), (10, 200, 30, 0)), "WEBP", {}),
        (Image.new("LA", (8, 8), (0, 0)), "PNG", {}),
        (Image.new("P", (8, 8)), "GIF", {"transparency": 0}),
        (Image.new("P", (8, 8)), "PNG", {"transparency": bytes(256)}),
    ],
)
def test_what_is_transparent_becomes_white(
    image: Image.Image, kind: str, options: dict[str, object]
) -> None:
    assert read_picture(saved(image, kind, **options), 8, "adm").unique().tolist() == [255]


def test_what_is_opaque_keeps_its_colours() -> None:
    image = Image.fromarray(noise(8, 8))
    image.putalpha(255)
    picture = read_picture(saved(image, "PNG"), 8, "lanczos").permute(1, 2, 0)
    assert np.array_equal(picture, noise(8, 8))


def test_of_sixteen_bits_the_upper_eight_are_kept() -> None:
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    picture = read_picture(saved(Image.fromarray(grey), "PNG"), 8, "lanczos")
    assert np.array_equal(picture, np.broadcast_to(grey >> 8, (3, 8, 8)))
    with pytest.raises(DataError, match=r"numbers without a known range \(mode F\)"):
        read_picture(saved(Image.new("F", (8, 8)), "TIFF"), 8, "lanczos")
