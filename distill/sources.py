"""Real pictures on the disk, as an ordered list of entries: captioned files, or a folder per class.

FOLDER/metadata.jsonl   one object a line, {"file_name": "a.png", "text": "a red circle"}
       a.png            one file may stand in several lines: every text is a group of its own

FOLDER/0/a.png          a folder per class, named by its number, or
       cat/a.png        by its name, whose line in FOLDER/classes.txt is its number, from 0; without
                        that file the teacher's own names count, or else the order of the folders,
                        of which there must be one for each class

FOLDER/dataset.json     {"labels": [["00000/img00000000.png", 6], ...]}, as EDM's dataset_tool.py
                        writes it: then the folders are no classes
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distill.class_names import CLASSES
from distill.data import DataError
from distill.prompts import checked, one_line, read_lines

METADATA = "metadata.jsonl"
LABELS = "dataset.json"
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
    class_names: tuple[str, ...]  # of all classes from 0 on, where the source has them

    def entries(self, start: int) -> Iterator[Entry]:
        """All entries from number `start` on. DataError: the source is not what it must be."""

    def texts(self) -> list[str] | None:
        """All texts, where they are known before the entries are read."""

    def fingerprint(self) -> str:
        """SHA-256 that changes whenever an entry does."""


class Files:
    """Files of one folder and their texts."""

    def __init__(
        self,
        folder: Path,
        texts: dict[str, list[tuple[int, str]]],
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.folder, self._texts, self.class_names = folder, texts, class_names
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
        raise DataError(
            f"positives.folder: {path} does not exist; positives.dataset.path takes other forms"
        )
    texts: dict[str, dict[str, int]] = {}  # a dict, so that a repeated line counts once
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number}: not an object with file_name and text: {line[:80]}"
            ) from None
        place = f"{path}, line {number}"
        name, text = checked(name, place, "file_name"), checked(text, place, "text")
        texts.setdefault(name, {}).setdefault(one_line(text), number)
    if not texts:
        raise DataError(f"{path} is empty: there is no prompt to learn")
    return Files(
        folder, {name: [(n, text) for text, n in texts[name].items()] for name in sorted(texts)}
    )


def class_files(folder: Path, classes: int, class_names: Sequence[str] = ()) -> Files:
    """The pictures of a folder per class; a text is the class's number.

    `classes` and `class_names` are the teacher's. DataError: the folders are not as at the head.
    """
    if (folder / LABELS).is_file():
        return labelled_files(folder / LABELS)
    folders = class_folders(folder)
    listed = class_list(folder, list(folders), classes, class_names)
    numbers = {name: listed.index(name) if listed else int(name) for name in folders}
    texts: dict[str, list[tuple[int, str]]] = {}
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        for path in folders[name]:
            texts[str(path.relative_to(folder))] = [(number, str(number))]
    return Files(folder, texts, tuple(listed))


def labelled_files(path: Path) -> Files:
    """The pictures that a `dataset.json` gives a class, class by class. DataError: it is broken."""
    try:
        labels = {str(name): number for name, number in json.loads(path.read_bytes())["labels"]}
    except (ValueError, KeyError, TypeError):
        labels = {}
    if not labels or any(type(number) is not int for number in labels.values()):
        raise DataError(
            f'{path} must hold the classes of pictures, {{"labels": [["00000/img00000000.png", 6],'
            " ...]}; delete it if the folders beside it are the classes"
        )
    ordered = sorted(labels.items(), key=lambda item: (item[1], item[0]))
    return Files(path.parent, {name: [(number, str(number))] for name, number in ordered})


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The pictures of every class folder, by its name. DataError: there is none, or none in one."""
    if not folder.is_dir():
        wrong = "is a file; unpack it" if folder.is_file() else "does not exist"
        raise DataError(f"positives.folder: {folder} {wrong}")
    found: dict[str, list[Path]] = {}
    for place in sorted(folder.glob("[!.]*/")):
        found[place.name] = visible(place, SUFFIXES)
        if not found[place.name]:
            raise DataError(f"class folder {place} holds no picture")
    if not found:
        raise DataError(f"positives.folder: {folder} holds no folder of a class")
    return found


def visible(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files under a folder that end so, in order, but for what is hidden (`._1.png`)."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def class_list(
    folder: Path, folders: Sequence[str], classes: int, class_names: Sequence[str]
) -> Sequence[str]:
    """The names of the classes in their order; none where folders are named by numbers.

    DataError: `classes.txt` repeats a name or lacks a folder's, or what a folder is cannot be told.
    """
    if (folder / CLASSES).is_file():
        return listed_classes(folder, folders)
    unnumbered = [name for name in folders if not (name.isascii() and name.isdecimal())]
    if not unnumbered:
        return ()
    if set(folders) <= set(class_names) and len(set(class_names)) == len(class_names):
        return class_names
    if len(folders) == classes == len(unnumbered):
        return folders
    raise DataError(
        f"class folder {folder / unnumbered[0]} is named neither by a number nor in"
        f" {folder / CLASSES}, which does not exist; without it there must be a folder for each of"
        f" the teacher's {classes} classes, and there are {len(folders)}"
    )


def listed_classes(folder: Path, folders: Sequence[str]) -> list[str]:
    """The lines of a folder's `classes.txt`. DataError: one is there twice, or a folder's not."""
    listed = [line.strip() for line in read_lines(folder / CLASSES)]
    for number, name in enumerate(listed):
        if listed.index(name) != number:
            raise DataError(f"{folder / CLASSES}, line {number + 1}: {name} is there twice")
    unknown = [name for name in folders if name not in listed]
    if unknown:
        raise DataError(f"class folder {folder / unknown[0]} is not named in {folder / CLASSES}")
    return listed


def grouped(rows: Sequence[Sequence[tuple[int, str]]]) -> dict[str, list[int]]:
    """Rows by text, from the texts of each row: both in the order in which the source has them."""
    placed = sorted((place, row, text) for row, texts in enumerate(rows) for place, text in texts)
    groups: dict[str, list[int]] = {}
    for _, row, text in placed:
        groups.setdefault(text, []).append(row)
    return groups
