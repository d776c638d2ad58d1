"""manifest.json of one version: its schema, and the check of the files that it lists."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from serve import noise
from serve.classes import Classes
from serve.errors import RepositoryError

MANIFEST = "manifest.json"
FORMAT = 1
CLASS_LABELS = "class_labels"

SizeName = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]  # WIDTHxHEIGHT in pixels


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Part):
    """A file of the version: its SHA-256 in hex and its size."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Tensor(_Part):
    """An input or output; `None` in a shape is the batch, or a side where there are sizes."""

    name: str
    dtype: Literal["int64", "float32", "uint8"]
    shape: tuple[int | None, ...]


class TokenizerEntry(_Part):
    """The tokenizer file of one input, and the number of ids that the input takes."""

    file: str
    max_length: int = Field(ge=1)


class Manifest(_Part):
    """Format 1. Keys that are not listed here are information and are not read."""

    format: Literal[1]
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: int = Field(ge=1)
    task: Literal["text-to-image", "class-to-image"]
    digest: str
    files: dict[str, FileEntry] = Field(min_length=1)
    graph: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    sizes: tuple[SizeName, ...] = Field(min_length=1)
    pixels_per_latent: int = Field(8, ge=1)
    max_batch: int = Field(ge=1)
    tokenizers: dict[str, TokenizerEntry] = Field(default_factory=dict)
    classes: Classes | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _is_read_here(cls, value: object) -> object:
        if isinstance(value, int) and value > FORMAT:
            raise ValueError(
                f"is {value}, this gateway reads {FORMAT}: a later release wrote it, "
                f"which is needed to serve it"
            )
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in [self.graph, *(entry.file for entry in self.tokenizers.values())]:
            if name not in self.files:
                raise ValueError(f"{name} is used but not listed in files")
        for name in self.files:
            if Path(name).name != name or name.startswith("."):
                raise ValueError(f"files lists {name!r}, allowed is a plain file name")
        self._check_inputs()
        self._check_shapes()
        if self.digest != digest_of(self.files):
            raise ValueError("digest does not match files")
        return self

    def _check_inputs(self) -> None:
        """Beside the noise: ids for each tokenizer, or one class a picture."""
        found = {tensor.name: tensor for tensor in self.inputs}
        if self.task == "text-to-image":
            if not self.tokenizers or self.classes is not None:
                raise ValueError("the task text-to-image has tokenizers and no classes")
            if found.keys() != {*self.tokenizers, "noise"}:
                raise ValueError("inputs must be the tokenizers' inputs and 'noise'")
            return
        if self.tokenizers or self.classes is None:
            raise ValueError("the task class-to-image has classes and no tokenizers")
        if found.keys() != {CLASS_LABELS, "noise"}:
            raise ValueError(f"inputs must be '{CLASS_LABELS}' and 'noise'")
        labels = found[CLASS_LABELS]
        if (labels.dtype, labels.shape) != ("int64", (None,)):
            raise ValueError(f"{CLASS_LABELS} must be int64 with one number a picture")

    def _check_shapes(self) -> None:
        """One size has fixed shapes, several have open sides; the noise suffices for each."""
        _, *latent = self._noise.shape
        _, *pixels = self.output.shape
        open_sides = [None, None] if len(self.sizes) > 1 else []
        if len(latent) != 3 or len(pixels) != 3 or None in (latent[0], pixels[2]):
            raise ValueError("noise and output must have fixed channels and two sides each")
        if [n for n in latent if n is None] != open_sides or pixels.count(None) != len(open_sides):
            raise ValueError("noise and output must have fixed shapes, but for several sizes")
        if not open_sides and self.sizes != (f"{pixels[1]}x{pixels[0]}",):
            raise ValueError(f"sizes is {list(self.sizes)}, the output is {self.output.shape}")
        for size in self.sizes:
            if open_sides and any(px % self.pixels_per_latent for px in _sides(size)):
                raise ValueError(f"size {size} is no multiple of {self.pixels_per_latent} pixels")
            if math.prod(self.noise_shape(size)) < noise.BLOCK:
                raise ValueError(f"noise {latent} has fewer than {noise.BLOCK} values")

    @property
    def _noise(self) -> Tensor:
        return next(tensor for tensor in self.inputs if tensor.name == "noise")

    def noise_shape(self, size: str) -> tuple[int, ...]:
        """Shape of the noise of one picture of a size, [C, h, w]."""
        sides = (px // self.pixels_per_latent for px in _sides(size))
        return _filled(self._noise.shape[1:], sides)

    def picture_shape(self, noise_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the picture that noise [C, h, w] becomes, [H, W, 3]."""
        sides = (length * self.pixels_per_latent for length in noise_shape[1:])
        return _filled(self.output.shape[1:], sides)


def _sides(size: str) -> tuple[int, int]:
    """Height and width in pixels of "WIDTHxHEIGHT"."""
    width, height = size.split("x")
    return int(height), int(width)


def _filled(shape: tuple[int | None, ...], sides: Iterable[int]) -> tuple[int, ...]:
    """`shape` with its open sides, in order, set to `sides`."""
    rest = iter(sides)
    return tuple(next(rest) if length is None else length for length in shape)


def digest_of(files: dict[str, FileEntry]) -> str:
    """SHA-256 over the lines '<sha256>  <file name>', sorted by name: the artefact's identity."""
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version folder; RepositoryError names the file and what is wrong."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        got = f", got {first['input']!r}" if first["type"] == "literal_error" else ""
        raise RepositoryError(f"{path}: {where + ': ' if where else ''}{text}{got}") from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Every file is there with its size and SHA-256, or RepositoryError names the first."""
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            raise RepositoryError(f"{path} is missing, {MANIFEST} lists it")
        size = path.stat().st_size
        if size != entry.bytes:
            raise RepositoryError(
                f"{path} has {size} bytes, {MANIFEST} says {entry.bytes}: it is half written"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry.sha256:
            raise RepositoryError(
                f"{path} has SHA-256 {found}, {MANIFEST} says {entry.sha256}: it was changed"
            )
