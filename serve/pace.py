"""How long a picture takes at a server that others use too: foretold from its latest answers."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

KEPT = 64
KEPT_S = 10.0  # a server that was slow once is tried again


class _Answered(NamedTuple):
    at_s: float
    taken_s: float
    share_s: float  # of the time taken, for each picture that was in work when it was asked for


class Pace:
    """Answers of the last seconds. Without any, nothing is known and no wait is foretold."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: deque[_Answered] = deque(maxlen=KEPT)

    def add(self, taken_s: float, in_work: int) -> None:
        """A picture took `taken_s`; with it, `in_work` (1 or more) were in work at its start."""
        self._answers.append(_Answered(self._clock(), taken_s, taken_s / in_work))

    def wait_s(self, pictures: int) -> float:
        """Seconds until `pictures` are made that are in work or about to be."""
        oldest_s = self._clock() - KEPT_S
        while self._answers and self._answers[0].at_s < oldest_s:
            self._answers.popleft()
        if not self._answers or pictures == 0:
            return 0.0
        share_s = statistics.median(answer.share_s for answer in self._answers)
        return max(min(answer.taken_s for answer in self._answers), pictures * share_s)
