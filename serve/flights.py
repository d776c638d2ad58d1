"""Identical requests share one computation for as long as it is in flight."""

import asyncio
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve.errors import DeadlineError

T = TypeVar("T")


@dataclass(eq=False)
class Flight(Generic[T]):
    """One computation: its task, when it should be done, and how many callers await it."""

    task: "asyncio.Task[T]"
    done_at: float  # of time.perf_counter
    callers: int = 0

    @property
    def left_s(self) -> float:
        """Seconds until it should be done."""
        return max(0.0, self.done_at - time.perf_counter())

    async def result(
        self, within_s: float = math.inf, unless: Collection["asyncio.Future[None]"] = ()
    ) -> T | None:
        """What it computes, or its error, which reaches every caller; None if one of `unless` is
        done before.

        A caller that is cancelled, or waits no longer, leaves the others alone; the last one ends
        the flight. Raises DeadlineError for who has waited `within_s`.
        """
        self.callers += 1
        first: set[asyncio.Future[Any]] = {self.task, *unless}
        try:
            await asyncio.wait(
                first,
                timeout=within_s if within_s < math.inf else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.task.done():
                return self.task.result()
            if any(one.done() for one in unless):
                return None
            detail = "in work for another caller, whose pictures others went before"
            raise DeadlineError(f"{detail}: the deadline has passed", self.left_s)
        finally:
            self.callers -= 1
            if self.callers == 0:
                self.task.cancel()


class Flights(Generic[T]):
    """The computations in flight, by what they compute; `shared` counts those who found one."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self.shared = 0

    def find(self, key: str) -> Flight[T] | None:
        """The flight with this key that a caller can still join."""
        flight = self._flights.get(key)
        if flight is None or flight.task.done() or flight.task.cancelling():
            return None
        self.shared += 1
        return flight

    def begin(self, key: str, task: "asyncio.Task[T]", wait_s: float) -> Flight[T]:
        """A new flight, which should be done in `wait_s` seconds."""
        flight = self._flights[key] = Flight(task, time.perf_counter() + wait_s)
        task.add_done_callback(lambda _: self._drop(key, flight))
        return flight

    def _drop(self, key: str, flight: Flight[T]) -> None:
        """Forget it, but not one that began after it under the same key."""
        if self._flights.get(key) is flight:
            del self._flights[key]
