"""Which pieces of work, numbered, are one process's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distill.data import DataError


@dataclass(frozen=True)
class Turns:
    """Process `index` of `count`: every count-th piece, so that no two have one in common."""

    index: int
    count: int

    def of(self, pieces: int) -> range:
        """The numbers of its pieces of that many."""
        return range(self.index, pieces, self.count)


EVERY = Turns(0, 1)


def read_turns(text: str | None, environment: Mapping[str, str]) -> Turns:
    """`I/N` (I from 0 to N - 1), else torchrun's RANK and WORLD_SIZE, else the whole.

    DataError: it is not of that form.
    """
    if text is None:
        return Turns(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise DataError(
            f"--shard is {text!r}; allowed is I/N with I from 0 to N - 1: 0/4, 1/4, 2/4, 3/4"
        )
    return Turns(int(index), int(count))
