"""What the models of one process run on together: one call at a time, in turns."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from serve.give_way import give_way


class Load(Protocol):
    """What one model has to do."""

    @property
    def running_s(self) -> float:
        """Seconds that its present call still takes."""

    @property
    def waiting_s(self) -> float:
        """Seconds that all the pictures take that wait for it."""

    @property
    def call_s(self) -> float:
        """Seconds of its longest call."""


class Machine:
    """So that the times which were measured of each model alone stay true beside the others.

    A model holds `turn` while it takes its next batch and runs it. The turns go round, one call
    each. Every call is made in `executor`, also those that measure a model which is being opened.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.executor = ThreadPoolExecutor(1, "infer", initializer=give_way)
        self._loads: set[Load] = set()

    def join(self, load: Load) -> None:
        """This one runs here too from now on."""
        self._loads.add(load)

    def leave(self, load: Load) -> None:
        """It does no longer; without effect if it never did."""
        self._loads.discard(load)

    def others_s(self, load: Load, calls: int) -> float:
        """Seconds that the others take, at the most, before so many calls of this one are made."""
        others = (other for other in self._loads if other is not load)
        return sum(o.running_s + min(o.waiting_s, calls * o.call_s) for o in others)

    def close(self) -> None:
        """Let the thread go, once the call that runs in it has ended."""
        self.executor.shutdown(wait=False, cancel_futures=True)
