"""Figures held against what was promised."""

from collections.abc import Sequence
from typing import NamedTuple


class Verdict(NamedTuple):
    """A figure and its bound; a figure that is not a number fails."""

    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False  # else at most

    @property
    def passed(self) -> bool:
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        side = "at least" if self.at_least else "at most"
        state = "pass" if self.passed else "FAIL"
        figure, bound = f"{self.figure:.3g}{self.unit}", f"{self.bound:g}{self.unit}"
        return f"{state}  {self.what}: {figure}, {side} {bound}"


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Print them; the exit status, 1 if any failed."""
    for verdict in verdicts:
        print(verdict)
    return 0 if all(verdict.passed for verdict in verdicts) else 1
