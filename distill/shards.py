"""Rows of tensors in safetensors files on the disk: written whole, read in place.

    FOLDER/index.json               what the rows are of, so that others are never taken for them
           shard-00000.safetensors  tensors of the same number of rows

A file is mapped into memory: a row costs nothing until it is read, and processes of one machine
share what they have read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.checkpoint import flush
from distill.data import DataError
from distill.teachers.teacher import Condition

INDEX = "index.json"
NOTE = "note"  # the one key of a file's metadata: several would lie in no fixed order


class StoredRows:
    """Tensors [n_i, ...] one after the other as one [M, ...], without a copy.

    `convert` is applied to what is read, [n, ...] -> [n, ...].
    """

    def __init__(
        self, parts: Sequence[Tensor], convert: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        assert parts, "no part"
        self._parts = [part for part in parts if len(part)] or [parts[0]]
        lengths = torch.tensor([len(part) for part in self._parts])
        self._ends = lengths.cumsum(0)
        self._starts = self._ends - lengths
        self._convert = convert

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows of an index of any shape: [*index.shape, ...]. IndexError: there is no such."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        flat = index.flatten()
        if len(flat) and not (int(flat.min()) >= 0 and int(flat.max()) < len(self)):
            raise IndexError(f"rows {int(flat.min())} to {int(flat.max())} of {len(self)}")
        found = self._parts[0].new_empty((len(flat), *self._parts[0].shape[1:]))
        of_part = torch.searchsorted(self._ends, flat, right=True)
        for part in set(of_part.tolist()):
            here = of_part == part
            found[here] = self._parts[part][flat[here] - self._starts[part]]
        if self._convert is not None:
            found = self._convert(found)
        return found.view(*index.shape, *found.shape[1:])


class StoredConditions:
    """Conditions whose parts are rows on the disk."""

    def __init__(self, parts: Mapping[str, StoredRows]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(next(iter(self._parts.values())))

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return Condition({name: rows[index] for name, rows in self._parts.items()})


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies; a folder never holds half a one by this name."""
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor], note: object = None) -> None:
    """One file, whole or not at all, down on the disk; `note` is kept in it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, partial, {NOTE: json.dumps(note)})
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def open_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped, not read. DataError: it is missing or broken."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"shard {path} is broken ({error}); delete it") from error


def read_note(path: Path) -> Any:
    """What was kept beside the tensors. DataError: the file is broken, or no shard of ours."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[NOTE])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"shard {path} is broken ({error}); delete it") from error


def claim(folder: Path, facts: Mapping[str, object], name: str = INDEX) -> list[str]:
    """Writes what a folder's rows are of, or names the facts in which what is there differs.

    Of processes that claim a folder at once one writes. DataError: what is there is torn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.is_file():
        own = folder / f".{name}.{os.getpid()}"
        own.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    try:
        there = json.loads(path.read_text("utf-8"))
        return [fact for fact in facts if there.get(fact) != facts[fact]]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is broken ({error}); delete {folder}") from error


def begin(folder: Path, facts: Mapping[str, object]) -> list[str]:
    """Claims a folder; rows of anything else in it are deleted, and what differed is named."""
    try:
        other = claim(folder, facts)
    except DataError:
        other = [INDEX]
    if other:
        shutil.rmtree(folder)
        claim(folder, facts)
    return other
