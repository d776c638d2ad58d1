"""Reads a pickle of tensors and plain containers, and runs nothing that the pickle names.

A pickle is a program: each global it names is imported and may be called. Here each name is looked
up in one short table of functions that only build data (`ALLOWED`); any other is refused by name,
before anything is imported. Objects of NVlabs' `torch_utils.persistence`, which travel with their
module's source text, become `Record`s: class name and state. The source is never compiled.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.importers.failure import ImportFailure

MAX_BYTES = 8 * 2**30  # the largest file that is read; the published ones have about 1.2e9
DEEPEST = 32  # modules within modules
NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}


class Named(dict[Any, Any]):
    """Any of the dictionaries that a pickle may hold: OrderedDict, EasyDict."""

    def __setstate__(self, state: object) -> None:
        """Attributes beside the entries mean nothing here."""


@dataclass
class Record:
    """An object of some class, as its name and its state; no method of it exists."""

    kind: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: object) -> None:
        self.state = mapping(state, "an object's state")


class ModuleDict(Record):
    """A `torch.nn.ModuleDict` without torch's code."""

    def __new__(cls, *arguments: object) -> ModuleDict:
        made = super().__new__(cls)
        made.kind, made.state = "ModuleDict", {}
        return made


@dataclass(frozen=True)
class NumberType:
    """NumPy's type of one number, by its letter and bytes."""

    code: str

    def __setstate__(self, state: object) -> None:
        """(version, byte order, ...): the numbers that are read are little-endian."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] not in ("<", "|", "="):
            raise ImportFailure(f"a number's byte order is {state[1]!r}; allowed is '<'")


class Builder:
    """A function that a pickle may call, and may not change."""

    def __init__(self, build: Callable[..., object]) -> None:
        self.build = build

    def __call__(self, *arguments: object) -> object:
        return self.build(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ImportFailure("the pickle tries to change what builds its objects")


def number_type(code: object, *_: object) -> NumberType:
    if code not in NUMBERS:
        raise ImportFailure(f"a number's type is {code!r}; allowed are {', '.join(NUMBERS)}")
    return NumberType(str(code))


def number(kind: object, data: object) -> float | int | bool:
    """A NumPy scalar from its bytes."""
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise ImportFailure("a number's bytes are missing")
    try:
        found: float | int | bool = struct.unpack("<" + NUMBERS[kind.code], data)[0]
    except struct.error as error:
        raise ImportFailure(f"a number's bytes do not fit its type: {error}") from error
    return found


def storage(data: object) -> Any:
    """A tensor's memory, which torch wrote as a file of its own; read with `weights_only`."""
    if not isinstance(data, bytes):
        raise ImportFailure(f"a tensor's memory is {type(data).__name__}, not bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles, which are refused below
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ImportFailure(f"a tensor's memory cannot be read: {reason[0]}") from error
    if not isinstance(found, torch.storage.TypedStorage):
        raise ImportFailure(f"a tensor's memory holds {type(found).__name__}")
    return found


def tensor(memory: object, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """A view of a memory. ImportFailure: it would reach beyond the end."""
    if not isinstance(memory, torch.storage.TypedStorage):
        raise ImportFailure("a tensor has no memory")
    shape, steps = whole_numbers(size), whole_numbers(stride)
    (start,) = whole_numbers((offset,))
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    untyped = memory._untyped_storage
    have = untyped.nbytes() // memory.dtype.itemsize
    if 0 not in shape and last >= have:
        raise ImportFailure(f"a tensor of shape {list(shape)} reaches beyond its {have} numbers")
    return torch.empty(0, dtype=memory.dtype).set_(untyped, start, shape, steps)


def whole_numbers(values: object) -> tuple[int, ...]:
    """ImportFailure unless `values` are integers from 0."""
    if isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values):
        return values
    raise ImportFailure(f"a tensor's shape or place is {values!r}, not whole numbers from 0")


def parameter(data: object, *_: object) -> Tensor:
    """A parameter is its tensor."""
    if not isinstance(data, Tensor):
        raise ImportFailure(f"a parameter is {type(data).__name__}, not a tensor")
    return data


def persistent(meta: object) -> Record:
    """An object of `torch_utils.persistence`: `module_src` is text, and remains text."""
    facts = mapping(meta, "a persistent object")
    if facts.get("type") != "class" or not isinstance(facts.get("class_name"), str):
        raise ImportFailure("a persistent object does not name its class")
    return Record(facts["class_name"], mapping(facts.get("state"), "an object's state"))


def latin1(text: object, coding: object) -> bytes:
    """Bytes, as pickles before protocol 3 spell them."""
    if not isinstance(text, str) or coding != "latin1":
        raise ImportFailure(f"bytes are spelt as {type(text).__name__} in {coding!r}")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise ImportFailure(f"bytes are spelt wrongly: {error}") from error


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """ImportFailure unless it is a dictionary."""
    if not isinstance(value, Mapping):
        raise ImportFailure(f"{what} is {type(value).__name__}, not a dictionary")
    return value


# What a pickle may name -> what is built instead.
ALLOWED: Mapping[tuple[str, str], object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Builder(persistent),
    ("torch._utils", "_rebuild_parameter"): Builder(parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(tensor),
    ("torch.storage", "_load_from_bytes"): Builder(storage),
    ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
    ("collections", "OrderedDict"): Named,
    ("dnnlib.util", "EasyDict"): Named,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): Builder(latin1),
    ("numpy", "dtype"): Builder(number_type),
    ("numpy.core.multiarray", "scalar"): Builder(number),
    ("numpy._core.multiarray", "scalar"): Builder(number),
}


class RecordUnpickler(pickle.Unpickler):
    """An unpickler that knows the names of `ALLOWED` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module, name))
        if found is None:
            raise ImportFailure(
                f"it names {module}.{name}, which is not among the {len(ALLOWED)} harmless names"
                " that a checkpoint needs; nothing was run"
            )
        return found


# What the standard library's unpickler raises where the bytes make no sense.
BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    UnicodeDecodeError,
    MemoryError,
    RecursionError,
)


def read_records(path: Path) -> Any:
    """What a pickle holds, as tensors, numbers, text, plain containers and `Record`s.

    Raises:
        ImportFailure: no such file, no pickle, or one that names what it must not.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImportFailure(f"{path} has {path.stat().st_size} bytes, allowed are {MAX_BYTES}")
        with path.open("rb") as file:
            return RecordUnpickler(file).load()
    except ImportFailure as error:
        raise ImportFailure(f"{path} is refused: {error}") from error
    except OSError as error:
        raise ImportFailure(f"{path} cannot be read: {error.strerror or error}") from error
    except BROKEN as error:
        raise ImportFailure(f"{path} is not a pickle that can be read: {error}") from error


def weights_of(record: Record, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a module's record: parameters and buffers by dotted name.

    ImportFailure: a module's children are no dictionary, or a module lies within itself.
    """
    if prefix.count(".") > DEEPEST:
        raise ImportFailure(f"its modules are nested more than {DEEPEST} deep")
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in mapping(record.state.get(kind, {}), kind).items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
    for name, child in mapping(record.state.get("_modules", {}), "_modules").items():
        if isinstance(child, Record):
            found |= weights_of(child, f"{prefix}{name}.")
    return found


def only(kind: str, record: object, what: str) -> Record:
    """ImportFailure unless it is a record of this class."""
    if isinstance(record, Record) and record.kind == kind:
        return record
    is_now = record.kind if isinstance(record, Record) else type(record).__name__
    raise ImportFailure(f"{what} is of class {is_now}; supported is {kind}")
