"""How long a batch takes on this machine: it chooses the sizes of batches and foretells waits."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serve.images import Pixels
from serve.model import Feeds

KEPT, KEPT_S = 32, 10.0  # calls that Drift remembers

RunBatch = Callable[[list[Feeds]], list[Pixels]]


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds that one call takes, for each batch size that is worth using; 1 is always in.

    They are those of the default size, and stand for the other sizes of a model as well. Where
    several `calls` run at a time, they were measured while all did.
    """

    seconds: dict[int, float]
    calls: int = 1

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
        total, longest = 0.0, 0.0
        for size in sorted(self.seconds, reverse=True):
            calls = min(waiting // size, -(-place // size))
            total += calls * self.seconds[size]
            longest = max(longest, self.seconds[size] if calls else 0.0)
            place, waiting = max(0, place - calls * size), waiting - calls * size
        return self._span_s(total, longest)

    def _span_s(self, total_s: float, longest_s: float) -> float:
        """Seconds for calls that take `total_s` one after another, several at a time.

        At the most: the bound of list scheduling (Graham, "Bounds on multiprocessing timing
        anomalies", 1969, theorem 2), which is exact where one runs at a time.
        """
        return (total_s + (self.calls - 1) * longest_s) / self.calls

    @property
    def longest_s(self) -> float:
        """Seconds of the largest batch."""
        return self.seconds[max(self.seconds)]

    def wait_s(self, pictures: int, ahead: int, waiting: int, busy: bool) -> float:
        """Seconds until `pictures` that come now are made, `ahead` of those `waiting` before them.

        Of 0: until they would begin. An idle model begins at once; at a busy one others may come
        who fill their batches up, and it is not counted on that they share one with the last
        of those ahead. So it is seldom too short, and falls as time passes if nobody else comes.
        """
        begin_s = self.until_s(ahead, waiting)
        if pictures == 0:
            return begin_s
        most = max(self.seconds)
        if pictures <= most and not busy:
            return self.total_s(pictures)
        together_s = self.until_s(ahead + pictures, waiting + pictures)
        filled_s = self._filled_s(ahead + pictures)
        own_s = max(self.total_s(pictures), self._filled_s(pictures))
        return max(together_s, filled_s, begin_s + own_s)

    def _filled_s(self, pictures: int) -> float:
        """Seconds for so many where every batch is filled up by others."""
        return self._span_s(-(-pictures // max(self.seconds)) * self.longest_s, self.longest_s)


class Drift:
    """How much longer calls take than was measured, by those of the last seconds.

    It is what nine in ten of them needed: a wait that is foretold with it is seldom too short.
    Without any it is 1, so that a machine that was slow once is trusted again.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ratios: deque[tuple[float, float]] = deque(maxlen=KEPT)  # when, and taken / measured
        self._factor: float | None = None  # of the ratios that are there now

    def add(self, measured_s: float, taken_s: float) -> None:
        """A call took `taken_s`. One that was not measured says nothing."""
        if measured_s > 0:
            self._ratios.append((self._clock(), taken_s / measured_s))
            self._factor = None

    @property
    def factor(self) -> float:
        """Seconds of now for one second as measured; each request asks, so it is kept."""
        oldest = self._clock() - KEPT_S
        while self._ratios and self._ratios[0][0] < oldest:
            self._ratios.popleft()
            self._factor = None
        if self._factor is None:
            ratios = sorted(ratio for _, ratio in self._ratios)
            self._factor = ratios[(len(ratios) - 1) * 9 // 10] if ratios else 1.0
        return self._factor
