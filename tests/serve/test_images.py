"""Encoded pictures, read back by Pillow alone."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from serve.images import EXIF_IFD, IMAGE_DESCRIPTION, USER_COMMENT, Origin, encode

PIXELS = np.random.RandomState(0).randint(0, 256, (24, 40, 3)).astype(np.uint8)
SMOOTH = np.add.outer(np.arange(24), np.arange(40))[..., None].repeat(3, -1).astype(np.uint8)
LATIN = Origin("a red circle", 2**64 - 1, "shapes/1", "ab" * 32)
JAPANESE = Origin("赤い円 été", 7, "shapes/1", "cd" * 32)


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("format", ["png", "webp"])
def test_png_and_default_webp_keep_every_pixel(format):
    image = read(encode(PIXELS, format, None, LATIN))
    assert image.format == format.upper()
    assert np.array_equal(np.asarray(image.convert("RGB")), PIXELS)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_trades_size_for_likeness(format):
    rough, fine = (encode(SMOOTH, format, quality, LATIN) for quality in (5, 100))
    assert len(rough) < len(fine)
    error = np.abs(np.asarray(read(fine).convert("RGB")).astype(int) - SMOOTH)
    assert error.max() <= 8


def test_jpeg_has_quality_90_unless_told_otherwise():
    assert encode(PIXELS, "jpeg", None, LATIN) == encode(PIXELS, "jpeg", 90, LATIN)
    assert encode(PIXELS, "jpeg", None, LATIN) != encode(PIXELS, "jpeg", 91, LATIN)


@pytest.mark.parametrize("format", ["png", "raw"])
def test_what_is_always_lossless_takes_no_quality(format):
    with pytest.raises(AssertionError, match="takes no quality"):
        encode(PIXELS, format, 90, LATIN)


def test_raw_is_the_pixels_row_by_row_however_they_lie_in_memory():
    mirrored = PIXELS[:, ::-1]
    data = encode(mirrored, "raw", None, LATIN)
    assert np.array_equal(np.frombuffer(data, np.uint8).reshape(24, 40, 3), mirrored)


@pytest.mark.parametrize("origin", [LATIN, JAPANESE])
def test_png_says_what_it_was_made_from(origin):
    text = read(encode(PIXELS, "png", None, origin)).text
    assert text == {
        "prompt": origin.subject,
        "seed": str(origin.seed),
        "model": origin.model,
        "digest": origin.digest,
    }


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize(
    ("origin", "code", "encoding"),
    [(LATIN, b"ASCII\0\0\0", "ascii"), (JAPANESE, b"UNICODE\0", "utf-16-le")],
)
def test_exif_says_what_it_was_made_from(format, origin, code, encoding):
    exif = read(encode(PIXELS, format, None, origin)).getexif()
    comment = exif.get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == code
    fields = vars(origin) | {"prompt": origin.subject}
    assert json.loads(comment[8:].decode(encoding)) == {
        name: value for name, value in fields.items() if name != "subject"
    }
    assert exif[IMAGE_DESCRIPTION] == origin.subject.encode("ascii", "replace").decode()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_equal_arguments_give_equal_bytes(format):
    first = encode(PIXELS, format, None, LATIN)
    assert first == encode(PIXELS.copy(), format, None, LATIN)
    assert first != encode(PIXELS, format, None, JAPANESE)


def test_the_longest_prompt_that_settings_allow_fits_in_exif():
    origin = Origin('"' * 5_000 + "😀" * 5_000, 1, "shapes/1", "ab" * 32)
    assert read(encode(PIXELS, "jpeg", None, origin)).size == (40, 24)
