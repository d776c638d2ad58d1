"""manifest.json of one version: its schema, and the check of the files that it lists."""

import hashlib
import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve import noise
from serve.errors import RepositoryError

MANIFEST = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Part):
    """A file of the version: its SHA-256 in hex and its size."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Tensor(_Part):
    """An input or output of the graph; `None` in a shape is the batch."""

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
    task: Literal["text-to-image"]
    digest: str
    files: dict[str, FileEntry] = Field(min_length=1)
    graph: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    sizes: tuple[str, ...] = Field(min_length=1)
    max_batch: int = Field(ge=1)
    tokenizers: dict[str, TokenizerEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in [self.graph, *(entry.file for entry in self.tokenizers.values())]:
            if name not in self.files:
                raise ValueError(f"{name} is used but not listed in files")
        for name in self.files:
            if Path(name).name != name or name.startswith("."):
                raise ValueError(f"files lists {name!r}, allowed is a plain file name")
        if {tensor.name for tensor in self.inputs} != {*self.tokenizers, "noise"}:
            raise ValueError("inputs must be the tokenizers' inputs and 'noise'")
        if None in self.noise_shape or len(self.output.shape) != 4 or None in self.output.shape[1:]:
            raise ValueError("noise and output must have fixed shapes behind the batch")
        if math.prod(size or 0 for size in self.noise_shape) < noise.BLOCK:
            raise ValueError(f"noise {self.noise_shape} has fewer than {noise.BLOCK} values")
        if self.sizes != (f"{self.output.shape[2]}x{self.output.shape[1]}",):
            raise ValueError(f"sizes is {list(self.sizes)}, the output is {self.output.shape}")
        if self.digest != digest_of(self.files):
            raise ValueError("digest does not match files")
        return self

    @property
    def noise_shape(self) -> tuple[int | None, ...]:
        """Shape of one picture's noise, [C, H, W]."""
        return next(tensor.shape[1:] for tensor in self.inputs if tensor.name == "noise")


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
