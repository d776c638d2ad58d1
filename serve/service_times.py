"""How long a batch takes on this machine: measured at start, to choose sizes and foretell waits."""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve.images import Pixels
from serve.model import Feeds

GAIN = 0.97  # a larger batch must take at most this share of the time per picture
REPEATS = 5

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
        total = 0.0
        for size in sorted(self.seconds, reverse=True):
            calls, pictures = divmod(pictures, size)
            total += calls * self.seconds[size]
        return total


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
