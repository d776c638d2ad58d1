"""The window: so many pictures are with Triton, the others wait here, in the callers' fair order.

What is with Triton is served in the order in which it was sent; so what is fair has to be decided
before, and the window is what of that order cannot be changed any more. It must be wide enough that
Triton always finds a whole batch waiting when it ends one: twice the largest batch, for every
instance and server.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial

from serve.backend import Inferred
from serve.errors import DeadlineError, InferenceError, ServeError
from serve.fair_queue import FairQueue
from serve.metrics import ModelMetrics
from serve.model import Feeds
from serve.turn import Turn

RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class Waiting:
    """A picture that was asked for; `ends` is its deadline, of time.perf_counter."""

    feeds: Feeds
    turn: Turn
    headers: Mapping[str, str]
    ends: float
    future: "asyncio.Future[Inferred]"
    queued_at: float = field(default_factory=time.perf_counter)
    call: "asyncio.Task[Inferred] | None" = None
    timer: asyncio.TimerHandle | None = None

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.ends - time.perf_counter()


Send = Callable[[Waiting], Coroutine[None, None, Inferred]]


class Window:
    """At most `size` pictures are in `send` at a time."""

    def __init__(self, size: int, send: Send, metrics: ModelMetrics) -> None:
        self._size = size
        self._send = send
        self._metrics = metrics
        self._queue: FairQueue[Waiting] = FairQueue()
        self._calls: set[asyncio.Task[Inferred]] = set()
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Pictures that were sent and not answered yet."""
        return len(self._calls)

    @property
    def waiting(self) -> int:
        """Pictures that wait here."""
        return len(self._queue)

    def before(self, turn: Turn, count: int) -> int:
        """Pictures that will be made before the last of `count` (1 or more) that come now."""
        return len(self._calls) + self._queue.ahead(turn, count)

    def put(
        self, feeds: Feeds, within_s: float, turn: Turn, headers: Mapping[str, str]
    ) -> "asyncio.Future[Inferred]":
        """Send a picture, now or in its turn; DeadlineError once `within_s` has passed before."""
        loop = asyncio.get_running_loop()
        ends = time.perf_counter() + within_s
        item = Waiting(feeds, turn, headers, ends, loop.create_future())
        item.future.add_done_callback(lambda _: self._forget(item))
        self._queue.put(item, turn)
        self._fill()
        if item.call is None and within_s < math.inf and not item.future.done():
            item.timer = loop.call_later(within_s, _expire, item)
        return item.future

    def refuse(self, error: Callable[[], ServeError]) -> None:
        """Fail everything that waits here; what was sent is left to its answer."""
        while (item := self._queue.pop()) is not None:
            if not item.future.done():
                item.future.set_exception(error())

    async def close(self) -> None:
        """Fail everything, and end what was sent."""
        self._closed = True
        self.refuse(_stopped)
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    def _fill(self) -> None:
        """Send what waits for as long as there is room."""
        while len(self._calls) < self._size and not self._closed:
            item = self._queue.pop()
            if item is None:
                return
            if item.future.done():  # its caller has just left
                continue
            if item.left_s <= 0:
                _expire(item)
                continue
            item.call = asyncio.ensure_future(self._send(item))
            self._calls.add(item.call)
            item.call.add_done_callback(partial(self._answer, item))

    def _answer(self, item: Waiting, call: "asyncio.Task[Inferred]") -> None:
        """Hand on what became of a picture that was sent, and send the next."""
        self._calls.discard(call)
        if not item.future.done():
            if call.cancelled():
                item.future.set_exception(_stopped())
            elif (error := call.exception()) is not None:
                item.future.set_exception(error)
            else:
                item.future.set_result(call.result())
        elif not call.cancelled():
            call.exception()  # its caller has left: nobody else will look
        self._fill()

    def _forget(self, item: Waiting) -> None:
        """The picture is settled; where its caller has left, it is not made."""
        if item.timer is not None:
            item.timer.cancel()
        if item.call is None:
            self._queue.remove(item)
        elif item.future.cancelled():
            item.call.cancel()
        if item.future.cancelled():
            self._metrics.cancelled("queued" if item.call is None else "running")


def _expire(item: Waiting) -> None:
    if not item.future.done():
        detail = "the deadline passed before Triton was asked"
        item.future.set_exception(DeadlineError(detail, RETRY_AFTER_S))


def _stopped() -> InferenceError:
    return InferenceError("the gateway has stopped")
