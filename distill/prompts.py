"""Prompts from a file, and what becomes of those that are too long for the teacher.

NAME.txt       a prompt a line
NAME.jsonl     an object a line with `prompt`, `text` or `caption`
NAME.parquet   a column `prompt`, `text` or `caption`
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from tqdm import tqdm

from distill.data import DataError, Report
from distill.teachers.teacher import Teacher

KEYS = ("prompt", "text", "caption")
TEXT_SUFFIXES = ("", ".txt", ".text")
LongPrompts = Literal["refuse", "truncate", "skip"]


@runtime_checkable
class Tokenizing(Protocol):
    """A teacher that can tell of a text, without an error, that it is too long."""

    def length_error(self, text: str) -> str | None:
        """The sentence about a text that its tokenizers cannot take; None if they can."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The different prompts of a file in its order, blank ones left out.

    DataError names the file, the line and what is wrong.
    """
    return tuple(dict.fromkeys(every_prompt(path)))


def every_prompt(path: Path) -> list[str]:
    """The prompts of a file in its order, repeated ones too, blank ones left out.

    DataError names the file, the line and what is wrong.
    """
    if not path.is_file():
        raise DataError(f"positives.prompts: {path} does not exist")
    found = reader(path)(path)
    prompts = [prompt for prompt in map(one_line, found) if prompt]
    if not prompts:
        raise DataError(f"positives.prompts: {path} is empty, so the prompt bank would be too")
    return prompts


def reader(path: Path) -> Callable[[Path], Iterator[str] | list[str]]:
    """What reads a file of this suffix. DataError: nothing does."""
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return read_lines
    if suffix == ".jsonl":
        return read_objects
    if suffix == ".parquet":
        return read_column
    raise DataError(
        f"positives.prompts: {path} ends in {path.suffix}; allowed are .txt, .jsonl and .parquet"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, blank ones at its end left out. DataError: it is not UTF-8.

    A line ends where editors and JSONL end it; `str.splitlines` ends it at U+2028 and others too.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8, line {line}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")


def one_line(text: str) -> str:
    """A text as prompts are: on one line, without space around it or a mark of byte order."""
    return " ".join(text.removeprefix("\ufeff").splitlines()).strip()


def read_objects(path: Path) -> Iterator[str]:
    """The prompts of a JSONL file."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt = entry[key_among(entry.keys())]
        except (ValueError, AttributeError, KeyError):
            raise DataError(
                f"{path}, line {number}: not an object with {', '.join(KEYS[:-1])} or {KEYS[-1]}:"
                f" {line[:80]}"
            ) from None
        yield checked(prompt, f"{path}, line {number}")


def read_column(path: Path) -> Iterator[str]:
    """The prompts of a Parquet file. DataError: no such column, no Parquet, no pyarrow."""
    arrow, parquet = load_library("pyarrow", path), load_library("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            column = key_among(names)
            if column is None:
                raise DataError(
                    f"{path} has the columns {', '.join(names)}; one of {', '.join(KEYS)} is needed"
                )
            number = 0
            for batch in file.iter_batches(columns=[column]):
                for prompt in batch.column(0).to_pylist():
                    number += 1
                    yield checked(prompt, f"{path}, row {number}")
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def key_among(names: Iterable[str]) -> str | None:
    """The name that prompts have, as it is written there: public data sets have Prompt and TEXT."""
    spelled = {name.lower(): name for name in names}
    return next((spelled[key] for key in KEYS if key in spelled), None)


def checked(prompt: object, place: str, what: str = "prompt") -> str:
    """A prompt as text; a class number may stand as a number. DataError names the place."""
    if isinstance(prompt, bool) or not isinstance(prompt, str | int):
        raise DataError(f"{place}: the {what} is {str(prompt)[:60]!r}, which is no text")
    return str(prompt)


def load_library(name: str, wanted_for: object) -> Any:
    """A module of the optional packages. DataError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"{wanted_for} needs the package {name.partition('.')[0]}:"
            f" pip install 'singlepass[data]' ({error})"
        ) from error


def fitting(
    teacher: Teacher, texts: Sequence[str], long_prompts: LongPrompts, report: Report
) -> dict[str, str]:
    """What each text becomes, by text: itself if it is short enough; those skipped are left out.

    DataError: some are too long, and long ones are refused, or none is left.
    """
    same = {text: text for text in texts}
    if not isinstance(teacher, Tokenizing):
        return same
    bar = tqdm(same, desc="lengths", unit="text", disable=None, leave=False)
    errors = {text: error for text in bar if (error := teacher.length_error(text)) is not None}
    if not errors:
        return same
    if long_prompts == "refuse":
        refuse(errors, len(same))
    done = {"truncate": "cut after the last word that fits", "skip": "left out"}[long_prompts]
    report(f"{len(errors)} of {len(same)} prompts are too long for the teacher and are {done}")
    if long_prompts == "truncate":
        return same | {text: truncated(teacher, text) for text in errors}
    if len(errors) == len(same):
        raise DataError(f"all {len(same)} prompts are too long, so none is left")
    return {text: text for text in same if text not in errors}


def refuse(errors: dict[str, str], count: int) -> None:
    """Raises the error of texts that are too long."""
    first = next(iter(errors.values()))
    several = f"{len(errors)} of {count} prompts are too long, the first: "
    raise DataError(
        f"{several if len(errors) > 1 else ''}{first};"
        " positives.long_prompts may be truncate or skip"
    )


def truncated(teacher: Tokenizing, text: str) -> str:
    """As many of a text's first words as fit; of a first word that does not, its first letters."""
    words = text.split(" ")
    kept = " ".join(words[: longest(teacher, words, " ")])
    return kept or text[: longest(teacher, text, "")]


def longest(teacher: Tokenizing, pieces: Sequence[str], glue: str) -> int:
    """The largest number of first pieces that fit together, by halving."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        if teacher.length_error(glue.join(pieces[:middle])) is None:
            low = middle
        else:
            high = middle - 1
    return low
