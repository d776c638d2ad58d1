"""Real pictures on the disk, as an ordered list of entries: captioned files, or a folder per class.

FOLDER/metadata.jsonl   one object a line, {"file_name": "a.png", "text": "a red circle"}
       a.png            one file may stand in several lines: every text is a group of its own

FOLDER/0/a.png          a folder per class, named by its number, or
       cat/a.png        by its name, whose line in FOLDER/classes.txt is its number, from 0
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distill.data import DataError
from distill.prompts import read_lines

METADATA = "metadata.jsonl"
CLASSES = "classes.txt"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Entry:
    """One picture: what a message calls it, its bytes or its file, and its texts.

    The number before a text says where the text stands in the source; groups are in that order.
    """

    name: str
    content: Path | bytes
    texts: tuple[tuple[int, str], ...]


class Source(Protocol):
    """Where pictures come from; the same entries in the same order every time."""

    name: str
    count: int | None  # entries, where that is known before they are read

    def entries(self, start: int) -> Iterator[Entry]:
        """All entries from number `start` on. DataError: the source is not what it must be."""

    def texts(self) -> list[str] | None:
        """All texts, where they are known before the entries are read."""

    def fingerprint(self) -> str:
        """SHA-256 that changes whenever an entry does."""


class Files:
    """Files of one folder and their texts."""

    def __init__(self, folder: Path, texts: dict[str, list[tuple[int, str]]]) -> None:
        self.folder, self._texts = folder, texts
        self.name = str(folder)
        self.names = list(texts)
        self.count: int | None = len(texts)

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for texts in self._texts.values() for _, text in texts))

    def entries(self, start: int) -> Iterator[Entry]:
        for name in self.names[start:]:
            yield Entry(str(self.folder / name), self.folder / name, tuple(self._texts[name]))

    def fingerprint(self) -> str:
        """Of every file's name, texts, size and time of change."""
        digest = hashlib.sha256()
        for name in self.names:
            path = self.folder / name
            stat = path.stat() if path.is_file() else None  # a missing one is named when it is read
            facts = (name, self._texts[name], stat and (stat.st_size, stat.st_mtime_ns))
            digest.update(f"{facts}\n".encode())
        return digest.hexdigest()


def captioned_files(folder: Path) -> Files:
    """The pictures that a folder's `metadata.jsonl` names. DataError names the bad line."""
    path = folder / METADATA
    if not path.is_file():
        raise DataError(f"positives.folder: {path} does not exist")
    texts: dict[str, dict[str, int]] = {}  # a dict, so that a repeated line counts once
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            texts.setdefault(str(entry["file_name"]), {}).setdefault(str(entry["text"]), number)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number}: not an object with file_name and text: {line[:80]}"
            ) from None
    if not texts:
        raise DataError(f"{path} is empty: there is no prompt to learn")
    return Files(
        folder, {name: [(n, text) for text, n in texts[name].items()] for name in sorted(texts)}
    )


def class_files(folder: Path) -> Files:
    """The pictures of a folder per class; a text is the class's number. DataError: see the head."""
    if not folder.is_dir():
        raise DataError(f"positives.folder: {folder} does not exist")
    numbers = class_numbers(folder)
    if not numbers:
        raise DataError(f"positives.folder: {folder} holds no folder of a class")
    texts: dict[str, list[tuple[int, str]]] = {}
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        pictures = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not pictures:
            raise DataError(f"class folder {folder / name} holds no picture")
        for path in pictures:
            texts[str(path.relative_to(folder))] = [(number, str(number))]
    return Files(folder, texts)


def class_numbers(folder: Path) -> dict[str, int]:
    """The number of every class folder, by its name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not (folder / CLASSES).is_file():
        return {name: class_number(folder, name) for name in names}
    listed: dict[str, int] = {}
    for number, line in enumerate(read_lines(folder / CLASSES)):
        if listed.setdefault(line.strip(), number) != number:
            raise DataError(f"{folder / CLASSES}, line {number + 1}: {line.strip()} is there twice")
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise DataError(f"class folder {folder / unknown[0]} is not named in {folder / CLASSES}")
    return {name: listed[name] for name in names}


def class_number(folder: Path, name: str) -> int:
    """The class that a folder's own name says."""
    if not (name.isascii() and name.isdecimal()):
        raise DataError(
            f"class folder {folder / name} is named neither by a number nor in"
            f" {folder / CLASSES}, which does not exist"
        )
    return int(name)


def grouped(rows: Sequence[Sequence[tuple[int, str]]]) -> dict[str, list[int]]:
    """Rows by text, from the texts of each row: both in the order in which the source has them."""
    placed = sorted((place, row, text) for row, texts in enumerate(rows) for place, text in texts)
    groups: dict[str, list[int]] = {}
    for _, row, text in placed:
        groups.setdefault(text, []).append(row)
    return groups
