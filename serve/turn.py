"""Whose turn it is: what decides the order in which waiting pictures are made."""

from typing import Literal, NamedTuple

ANYBODY = "anonymous"

Priority = Literal["interactive", "batch"]

PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


class Turn(NamedTuple):
    """Who asked, and how urgently. Pictures of one turn are made in the order in which they came.

    Without keys there is one caller, anybody.
    """

    caller: str = ANYBODY
    priority: Priority = "interactive"


USUAL = Turn()
