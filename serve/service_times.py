"""How long a batch takes on this machine: measured at start, to choose sizes and foretell waits."""

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve.images import Pixels
from serve.model import Feeds

GAIN = 0.97  # a larger batch must take at most this share of the time per picture
REPEATS = 5
KEPT, KEPT_S = 32, 10.0  # calls that Drift remembers

RunBatch = Callable[[list[Feeds]], list[Pixels]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds that one call takes, for each batch size that is worth using; 1 is always in.

    They are those of the default size, and stand for the other sizes of a model as well.
    """

    seconds: dict[int, float]

    def batch(self, waiting: int) -> int:
        """The batch size to run when `waiting` (1 or more) pictures wait."""
        return max(size for size in self.seconds if size <= waiting)

    def total_s(self, pictures: int) -> float:
        """Seconds until that many pictures are made, one batch after another."""
        return self.until_s(pictures, pictures)

    def until_s(self, place: int, waiting: int) -> float:
        """Seconds until the first `place` of `waiting` pictures are made, by the largest batches.

        The last batch that is needed may hold more of them, and takes its time all the same.
        """
        assert place <= waiting, f"place {place} of {waiting}"
        total = 0.0
        for size in sorted(self.seconds, reverse=True):
            calls = min(waiting // size, -(-place // size))
            total += calls * self.seconds[size]
            place, waiting = max(0, place - calls * size), waiting - calls * size
        return total


class Drift:
    """How much longer calls take than was measured, by those of the last seconds.

    It is what nine in ten of them needed: a wait that is foretold with it is seldom too short.
    Without any it is 1, so that a machine that was slow once is trusted again.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ratios: deque[tuple[float, float]] = deque(maxlen=KEPT)  # when, and taken / measured

    def add(self, measured_s: float, taken_s: float) -> None:
        """A call took `taken_s`. One that was not measured says nothing."""
        if measured_s > 0:
            self._ratios.append((self._clock(), taken_s / measured_s))

    @property
    def factor(self) -> float:
        """Seconds of now for one second as measured."""
        oldest = self._clock() - KEPT_S
        while self._ratios and self._ratios[0][0] < oldest:
            self._ratios.popleft()
        ratios = sorted(ratio for _, ratio in self._ratios)
        return ratios[(len(ratios) - 1) * 9 // 10] if ratios else 1.0


def measure(run: RunBatch, rows: list[Feeds], budget_s: float) -> ServiceTimes:
    """Times of the batch sizes 1..len(rows) that pay, found within about `budget_s` seconds.

    A size pays if it takes less time per picture than every smaller one, and it is only used if it
    gives the very bytes that its rows give alone. Sizes beyond the budget are not used.
    """
    end = time.perf_counter() + budget_s
    alone = [run(rows[:1])[0]]
    seconds = {1: _median_s(run, rows[:1], end)}
    for size in range(2, len(rows) + 1):
        best = min(taken / used for used, taken in seconds.items())
        if time.perf_counter() + 2 * size * seconds[1] > end:
            log.info("batches of %d pictures and more are not used: not measured in time", size)
            break
        together = run(rows[:size])
        taken = _median_s(run, rows[:size], end)
        if taken / size > GAIN * best:
            continue
        alone += [run([row])[0] for row in rows[len(alone) : size]]
        if all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True)):
            seconds[size] = taken
        else:
            log.warning("batches of %d are not used: they change the pictures", size)
    return ServiceTimes(seconds)


def _median_s(run: RunBatch, rows: list[Feeds], end: float) -> float:
    """Median over up to REPEATS calls, one at least; none more once the clock has passed `end`."""
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and time.perf_counter() < end):
        start = time.perf_counter()
        run(rows)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
