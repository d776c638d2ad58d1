"""Who may come in: a bound on accepted pictures, a share for each caller, deadlines to be kept."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

from serve.backend import Backend
from serve.errors import DeadlineError, NotReadyError, QueueFullError
from serve.turn import USUAL, Turn

ELSEWHERE_S = 1.0  # another gateway may be ready before this one is


@dataclass(eq=False)
class _Accepted:
    """A request whose pictures are in work, and when they should be made, by the clock.

    `after_s` follows once they are made, before it gives its places back.
    """

    pictures: int
    turn: Turn
    made_at: float
    after_s: float


class Admission:
    """Counts the pictures that are accepted and not yet answered, in front of any back end.

    Where callers can be told apart, each holds at most as many places as are still free. One who
    asks for all there is gets half of them, two get a third each: some are always left for who
    comes next, and nobody has to say how many callers there are. This is the dynamic threshold of
    Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
    Switches" (IEEE/ACM Transactions on Networking, 1998), with factor 1.
    """

    def __init__(
        self,
        backend: Backend,
        max_queue: int,
        told_apart: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend = backend
        self._max_queue = max_queue
        self._told_apart = told_apart
        self._clock = clock
        self._accepted: set[_Accepted] = set()
        self._open = 0
        self._held: Counter[str] = Counter()  # of them, by caller; only where they are told apart

    @property
    def open(self) -> int:
        """Pictures that are accepted and not yet answered."""
        return self._open

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted has been answered."""
        return self._open == 0

    def check_ready(self) -> None:
        """Raise NotReadyError, with the reason, unless pictures can be made."""
        if not self._backend.ready:
            raise NotReadyError(self._backend.why_not, ELSEWHERE_S)

    @contextmanager
    def admit(
        self, pictures: int, deadline_s: float, turn: Turn = USUAL, after_s: float = 0.0
    ) -> Iterator[float]:
        """Hold places for a request's pictures while they are made; gives the seconds to wait.

        `after_s` follows once they are made, and counts as well. Raises NotReadyError,
        QueueFullError or DeadlineError at once, never after waiting.
        """
        self.check_ready()
        self._check_queue(pictures, turn)
        wait_s = self._check_deadline(pictures, deadline_s, turn, after_s)
        accepted = _Accepted(pictures, turn, self._clock() + wait_s - after_s, after_s)
        self._hold(accepted)
        try:
            yield wait_s
        finally:
            self._let_go(accepted)

    def check_shared(self, wait_s: float, deadline_s: float) -> None:
        """Raise NotReadyError or DeadlineError unless a caller may await pictures in work.

        They hold their places already, and are done in `wait_s` seconds.
        """
        self.check_ready()
        if wait_s > deadline_s:
            raise DeadlineError(
                f"in work for another caller and ready in {wait_s * 1e3:.0f} ms, "
                f"the deadline is {deadline_s * 1e3:.0f} ms",
                retry_after_s=wait_s,
            )

    def _hold(self, one: _Accepted) -> None:
        self._accepted.add(one)
        self._open += one.pictures
        if self._told_apart:
            self._held[one.turn.caller] += one.pictures

    def _let_go(self, one: _Accepted) -> None:
        self._accepted.remove(one)
        self._open -= one.pictures
        if self._told_apart:
            self._held[one.turn.caller] -= one.pictures
            if not self._held[one.turn.caller]:
                del self._held[one.turn.caller]

    def _check_queue(self, pictures: int, turn: Turn) -> None:
        held = self._held[turn.caller]
        excess = self._open + held + pictures - self._max_queue
        if excess > 0:
            share = f", {held} of them for {turn.caller}" if held else ""
            rule = " and each caller at most as many as are free" if held else ""
            raise QueueFullError(
                f"{self._open} pictures are in work{share} and {pictures} more were asked for, "
                f"the gateway takes {self._max_queue} at a time{rule}",
                retry_after_s=self._freed_s(excess, turn.caller),
            )

    def _check_deadline(
        self, pictures: int, deadline_s: float, turn: Turn, after_s: float
    ) -> float:
        wait_s = self._backend.wait_s(pictures, turn) + after_s
        if wait_s > deadline_s:
            begin_s = self._backend.wait_s(0, turn)
            raise DeadlineError(
                f"ready in {wait_s * 1e3:.0f} ms, the deadline is {deadline_s * 1e3:.0f} ms; "
                f"others come first for {begin_s * 1e3:.0f} ms",
                retry_after_s=min(wait_s - deadline_s, begin_s),
            )
        return wait_s

    def _freed_s(self, excess: int, caller: str) -> float:
        """Seconds until so many places are free; those that the caller gives back count twice.

        Each request gives its places back at once. It is foretold exactly where nobody overtook.
        """
        for left_s, one in sorted(self._lefts(), key=itemgetter(0)):
            own = self._told_apart and one.turn.caller == caller
            excess -= one.pictures * (2 if own else 1)
            if excess <= 0:
                return left_s
        raise AssertionError(f"{excess} places more than there are")

    def _lefts(self) -> Iterator[tuple[float, _Accepted]]:
        """Seconds that each request still takes.

        Its turn may have been overtaken since: then all of the turn are as late as its last one is,
        and who should be done already is made with the last at the latest.
        """
        now = self._clock()
        of_turn: dict[Turn, list[_Accepted]] = {}
        for one in self._accepted:
            of_turn.setdefault(one.turn, []).append(one)
        for turn, mine in of_turn.items():
            drained_s = self._backend.wait_s(0, turn)
            behind_s = drained_s - max(one.made_at - now for one in mine)
            late_s = max(0.0, behind_s) if drained_s > 0 else 0.0  # else all are made
            for one in mine:
                left_s = one.made_at - now + one.after_s
                last_s = drained_s + one.after_s
                yield (min(last_s, left_s + late_s) if left_s > 0 else last_s), one
