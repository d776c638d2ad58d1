"""Measuring at start how long a call takes at each batch size, no longer than it takes to know."""

import logging
import statistics
from collections.abc import Iterator

import numpy as np

from serve.images import Pixels
from serve.model import Feeds
from serve.service_times import ServiceTimes
from serve.timed_calls import TimedCalls

GAIN = 0.97  # a larger batch must take at most this share of the time per picture
HOPELESS = 1.3  # a first call that is so much slower per picture settles it
STABLE = 0.05  # the median is known once it is this near to the fastest call
LEAST, MOST = 3, 5  # calls that are timed

log = logging.getLogger(__name__)


def measure(call: TimedCalls, rows: list[Feeds], budget_s: float) -> ServiceTimes:
    """Times of the batch sizes 1..len(rows) that pay, found in about `budget_s` seconds of calls.

    A size pays if it takes less time per picture than every smaller one, and it is only used if it
    gives the very bytes that its rows give alone. Sizes beyond the budget are not used.
    """
    return ServiceTimes(_Measuring(call, rows, budget_s).all(), call.calls)


class _Measuring:
    """What is known so far: the seconds of each size's calls, and each row's picture alone."""

    def __init__(self, call: TimedCalls, rows: list[Feeds], budget_s: float) -> None:
        self._make = call
        self._rows = rows
        self._left_s = budget_s
        self._taken: dict[int, list[float]] = {}
        self._alone: list[Pixels] = []

    def all(self) -> dict[int, float]:
        """The sizes that pay, with their seconds."""
        late = [size for size in self._worth_measuring() if not self._first(size)]
        if late:
            sizes = ", ".join(map(str, sorted(late)))
            log.info("batches of %s pictures are not used: not measured in time", sizes)
        self._more()
        paying, best = {}, float("inf")
        for size, calls in sorted(self._taken.items()):
            fastest = min(calls) / size  # what else the machine does only ever makes a call slower
            if size == 1 or fastest <= GAIN * best:
                paying[size], best = statistics.median(calls), fastest
        return paying

    def _call(self, rows: list[Feeds]) -> tuple[list[Pixels], float]:
        pictures, taken_s = self._make(rows)
        self._left_s -= taken_s
        return pictures, taken_s

    def _worth_measuring(self) -> Iterator[int]:
        """1, 2, 4, ... and then what lies between, next to one of them that may pay."""
        powers = [1 << i for i in range(len(self._rows).bit_length())]
        yield from powers
        for low in powers[1:]:
            if low in self._taken or 2 * low in self._taken:
                yield from range(low + 1, min(2 * low, len(self._rows) + 1))

    def _first(self, size: int) -> bool:
        """Time a first call of a size, and keep it if it may pay; False where the time is up."""
        if size > 1 and 2 * size * self._taken[1][0] > self._left_s:
            return False
        rows = self._rows[:size]
        together, _ = self._call(rows)
        taken_s = self._call(rows)[1]
        smaller = [calls[0] / one for one, calls in self._taken.items() if one < size]
        may_pay = taken_s <= HOPELESS * size * min(smaller, default=float("inf"))
        if may_pay and self._as_alone(together):
            self._taken[size] = [taken_s]
        return True

    def _more(self) -> None:
        """Time the sizes in turn, so that a slow second of the machine hits all of them alike."""
        for _ in range(MOST - 1):
            for size, calls in self._taken.items():
                if self._left_s <= 0 or all(_known(each) for each in self._taken.values()):
                    return
                calls.append(self._call(self._rows[:size])[1])

    def _as_alone(self, together: list[Pixels]) -> bool:
        """Whether the rows of a batch are the pictures that they are alone."""
        self._alone = self._alone or together[:1]  # the first batch is one row alone
        for row in self._rows[len(self._alone) : len(together)]:
            self._alone.append(self._call([row])[0][0])
        alone = self._alone[: len(together)]
        if all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True)):
            return True
        log.warning("batches of %d are not used: they change the pictures", len(together))
        return False


def _known(taken: list[float]) -> bool:
    return len(taken) >= LEAST and statistics.median(taken) <= (1 + STABLE) * min(taken)
