"""Pixels to PNG, JPEG or WebP bytes, with the recipe written into the picture; or raw."""

import functools
import io
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, features

from serve.subject import Subject, fields_of

Pixels = NDArray[np.uint8]  # [H, W, 3]
FileFormat = Literal["png", "jpeg", "webp"]
Format = Literal["png", "jpeg", "webp", "raw"]

FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)  # of files; raw is no file's format
MEDIA_TYPES: dict[Format, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "raw": "application/octet-stream",
}
WITH_QUALITY: tuple[Format, ...] = ("jpeg", "webp")
JPEG_QUALITY = 90
ZLIB_RLE = 3  # zlib's run-length strategy: a quarter of the time at about the same size

EXIF_IFD = 0x8769
IMAGE_DESCRIPTION = 0x010E
USER_COMMENT = 0x9286


@dataclass(frozen=True)
class Origin:
    """What a picture was made from; enough to make it again."""

    subject: Subject
    seed: int
    model: str
    digest: str


def encode(pixels: Pixels, format: Format, quality: int | None, origin: Origin) -> bytes:
    """The picture's file. Equal arguments give equal bytes: nothing else goes in, no time either.

    `quality` (1..100) is for jpeg (default 90) and webp (default: lossless). raw is no file but the
    H·W·3 bytes of the pixels, row by row, without their origin.
    """
    assert quality is None or format in WITH_QUALITY, f"{format} is lossless and takes no quality"
    if format == "raw":
        return pixels.tobytes()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format.upper(), **_options(format, quality, origin))
    return out.getvalue()


@functools.cache
def encoder_versions() -> str:
    """The encoders of this machine; with others, equal pixels may become other bytes."""
    libraries = ("pil", "zlib", "zlib_ng", "jpg", "libjpeg_turbo", "webp")
    return ", ".join(f"{name} {features.version(name)}" for name in libraries)


def _options(format: FileFormat, quality: int | None, origin: Origin) -> dict[str, Any]:
    if format == "png":
        return {"compress_level": 1, "compress_type": ZLIB_RLE, "pnginfo": _png_text(origin)}
    exif = _exif(origin)
    if format == "jpeg":
        return {"quality": JPEG_QUALITY if quality is None else quality, "exif": exif}
    if quality is None:
        return {"lossless": True, "method": 0, "exif": exif}
    return {"quality": quality, "method": 4, "exif": exif}


def _png_text(origin: Origin) -> PngImagePlugin.PngInfo:
    """One text chunk a field; Pillow writes iTXt where a text is not Latin-1."""
    text = PngImagePlugin.PngInfo()
    for key, value in _fields(origin).items():
        text.add_text(key, str(value))
    return text


def _exif(origin: Origin) -> bytes:
    """ImageDescription: what it shows (ASCII by the standard). UserComment: all fields as JSON."""
    comment = json.dumps(_fields(origin), ensure_ascii=False)
    exif = Image.Exif()
    shown = origin.subject if isinstance(origin.subject, str) else f"class {origin.subject}"
    exif[IMAGE_DESCRIPTION] = shown.encode("ascii", "replace").decode("ascii")
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = (
        b"ASCII\0\0\0" + comment.encode("ascii")
        if comment.isascii()
        else b"UNICODE\0" + comment.encode("utf-16-le")
    )
    return exif.tobytes()


def _fields(origin: Origin) -> dict[str, str | int]:
    return {
        **fields_of(origin.subject),
        "seed": origin.seed,
        "model": origin.model,
        "digest": origin.digest,
    }
