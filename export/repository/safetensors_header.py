"""What a safetensors file holds, by its header: 8 bytes of length, JSON, then the data."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from export.errors import StudentError

LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters by type, and bytes on the disk, of one file or several."""

    parameters: dict[str, int]
    bytes: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def __add__(self, other: "Weights") -> "Weights":
        types = {**self.parameters, **other.parameters}
        both = {t: self.parameters.get(t, 0) + other.parameters.get(t, 0) for t in types}
        return Weights(both, self.bytes + other.bytes)


def read_weights(file: Path) -> Weights:
    """Count the tensors; `StudentError` if the file is cut short or is none."""
    length = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else length
        if header_bytes > min(LARGEST_HEADER_BYTES, length - 8):
            raise StudentError(f"{file} is no safetensors file, or is cut short in its header")
        try:
            header = json.loads(stream.read(header_bytes))
            tensors = [value for name, value in header.items() if name != "__metadata__"]
            end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
            parameters: dict[str, int] = {}
            for tensor in tensors:
                kind = NAMES.get(tensor["dtype"], tensor["dtype"])
                parameters[kind] = parameters.get(kind, 0) + math.prod(tensor["shape"])
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise StudentError(f"{file} has no safetensors header: {error}") from error
    if length != 8 + header_bytes + end:
        raise StudentError(
            f"{file} has {length} bytes; its header says {8 + header_bytes + end}: it is cut short"
        )
    return Weights(parameters, length)
