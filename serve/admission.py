"""Who may come in: a bound on accepted pictures, and deadlines that can be kept."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve.backend import Backend
from serve.errors import DeadlineError, NotReadyError, QueueFullError

ELSEWHERE_S = 1.0  # another gateway may be ready before this one is


class Admission:
    """Counts the pictures that are accepted and not yet answered, in front of any back end."""

    def __init__(self, backend: Backend, max_queue: int) -> None:
        self._backend = backend
        self._max_queue = max_queue
        self._open = 0

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
    def admit(self, pictures: int, deadline_s: float) -> Iterator[float]:
        """Hold places for a request's pictures while they are made; gives the seconds to wait.

        Raises NotReadyError, QueueFullError or DeadlineError at once, never after waiting.
        """
        self.check_ready()
        self._check_queue(pictures)
        self._check_deadline(pictures, deadline_s)
        self._open += pictures
        try:
            yield self._backend.wait_s(pictures)
        finally:
            self._open -= pictures

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

    def _check_queue(self, pictures: int) -> None:
        excess = self._open + pictures - self._max_queue
        if excess > 0:
            share = min(1.0, excess / max(1, self._open))
            raise QueueFullError(
                f"{self._open} pictures are in work and {pictures} more were asked for, "
                f"the gateway takes {self._max_queue} at a time",
                retry_after_s=share * self._backend.wait_s(0),
            )

    def _check_deadline(self, pictures: int, deadline_s: float) -> None:
        wait_s = self._backend.wait_s(pictures)
        if wait_s > deadline_s:
            raise DeadlineError(
                f"ready in {wait_s * 1e3:.0f} ms, the deadline is {deadline_s * 1e3:.0f} ms; "
                f"without a queue it would take {(wait_s - self._backend.wait_s(0)) * 1e3:.0f} ms",
                retry_after_s=min(wait_s - deadline_s, self._backend.wait_s(0)),
            )
