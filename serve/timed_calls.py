"""Calls of a model on a clock: one at a time, or as many together as will run at a time."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext

from serve.images import Pixels
from serve.model import Feeds
from serve.service_times import RunBatch

Alone = Callable[[], AbstractContextManager[None]]

FASTEST_OF = 3


class TimedCalls:
    """Makes the same call in as many threads of the executor as `calls` says, and times it.

    `alone` is entered around it and not timed: a version that is opened under load waits there
    until nobody else computes, and is measured as well as one that is opened at the start.
    """

    def __init__(
        self,
        run: RunBatch,
        executor: Executor,
        calls: int = 1,
        alone: Alone = nullcontext,
    ) -> None:
        self.calls = calls
        self._run = run
        self._executor = executor
        self._alone = alone

    def __call__(self, rows: list[Feeds]) -> tuple[list[Pixels], float]:
        """The batch's pictures, and the seconds from the first call's start to the last one's end.

        Raises what the model does.
        """
        with self._alone():
            made = list(self._executor.map(self._timed, [rows] * self.calls))
        pictures, _, _ = made[0]
        return pictures, max(end for _, _, end in made) - min(start for _, start, _ in made)

    def fastest(self, rows: list[Feeds], long_s: float) -> tuple[list[Pixels], float]:
        """The pictures, and the seconds of the fastest of a few calls, after one that warms up.

        That one alone, where it takes longer than `long_s`: a slow model is not called again.
        """
        pictures, first_s = self(rows)
        if first_s > long_s:
            return pictures, first_s
        return pictures, min(self(rows)[1] for _ in range(FASTEST_OF))

    def _timed(self, rows: list[Feeds]) -> tuple[list[Pixels], float, float]:
        start = time.perf_counter()
        return self._run(rows), start, time.perf_counter()
