"""`stats.jsonl`: a line of figures per step, kept in step with the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def drop_later_lines(path: Path, step: int) -> None:
    """Removes the lines of steps that a resumed run does again, and a torn last line."""
    if not path.is_file():
        return
    kept = [line for line in whole_lines(path) if line["step"] < step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill, never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a statistics file that are whole JSON."""
    for text in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            return
