"""The names of a teacher's classes, which the student's directory carries on to who serves it.

DIR/classes.txt     a name a line, the first being class 0's
DIR/id2label.json   where that is missing: {"0": "tench", "1": "goldfish", ...}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.teachers.teacher import TeacherError

CLASSES = "classes.txt"
LABELS = "id2label.json"


def names_beside(folder: Path, classes: int) -> tuple[str, ...]:
    """The names in a pipeline's directory, one for each class; none where it has no such file.

    TeacherError: the file is broken, or holds fewer or more names than there are classes.
    """
    listed, labels = folder / CLASSES, folder / LABELS
    if listed.is_file():
        return names_in(listed, classes)
    if not labels.is_file():
        return ()
    try:
        plain = json.loads(read_text(labels))
        names = [plain[str(number)] for number in range(len(plain))]
    except (ValueError, KeyError, TypeError):
        raise TeacherError(
            f'{labels} must be an object of names by number, {{"0": "tench", "1": ...}}'
        ) from None
    return whole(labels, [str(name) for name in names], classes)


def names_in(listed: Path, classes: int) -> tuple[str, ...]:
    """The names in a text, a line each. TeacherError: it is not there, or as `names_beside`."""
    return whole(listed, read_text(listed).splitlines(), classes)


def whole(file: Path, found: Sequence[str], classes: int) -> tuple[str, ...]:
    """The names of a file, each on one line. TeacherError: they are not one for each class."""
    names = tuple(" ".join(name.split()) for name in found)
    if len(names) != classes or not all(names):
        blank = ", some of them blank" if not all(names) else ""
        raise TeacherError(
            f"{file} has {len(names)} names{blank}; the teacher has {classes} classes"
        )
    return names


def read_text(file: Path) -> str:
    """A text file. TeacherError: it cannot be read, or is not UTF-8."""
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise TeacherError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TeacherError(f"{file} is not UTF-8: {error}") from error


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Names as a student's directory has them, where there are any."""
    if names:
        (folder / CLASSES).write_text("".join(f"{name}\n" for name in names), "utf-8")
