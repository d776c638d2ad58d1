"""The micro-batcher: pictures of different callers share a call of the model.

It is work-conserving: an idle model takes what waits at once and never waits for company. Batches
form while a call runs, of the batch sizes that ServiceTimes found to pay; a batch holds pictures
of one size.
"""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from serve.backend import Inferred
from serve.errors import InferenceError
from serve.images import Pixels
from serve.model import Feeds
from serve.service_times import RunBatch, ServiceTimes

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Item:
    feeds: Feeds
    future: "asyncio.Future[Inferred]"
    queued_at: float = field(default_factory=time.perf_counter)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Only items of equal shapes can share a batch."""
        return {name: value.shape for name, value in self.feeds.items()}


class Batcher:
    """A queue in front of `run`, which is called in one thread, one batch at a time.

    Batchers that are given the same `executor` take turns in it; else each has a thread of its own.
    """

    def __init__(
        self, run: RunBatch, times: ServiceTimes, executor: ThreadPoolExecutor | None = None
    ) -> None:
        self._run = run
        self._times = times
        self._queue: deque[_Item] = deque()
        self._wake = asyncio.Event()
        self._own = None if executor else ThreadPoolExecutor(1, thread_name_prefix="infer")
        self._executor = executor or self._own
        self._busy_until = 0.0
        self._loop_task = asyncio.ensure_future(self._work())

    def submit(self, feeds: Feeds) -> "asyncio.Future[Inferred]":
        """Queue one picture; its future may be cancelled as long as it waits."""
        item = _Item(feeds, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._wake.set()
        return item.future

    def wait_s(self, pictures: int) -> float:
        """Seconds until `pictures` more would be made, by the measured times."""
        waiting = sum(not item.future.done() for item in self._queue)
        running_s = max(0.0, self._busy_until - time.perf_counter())
        return running_s + self._times.total_s(waiting + pictures)

    async def close(self) -> None:
        """Stop. What still waits fails; a call that runs is left to end in its thread."""
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        _fail([item for item in self._queue if not item.future.done()], "the gateway has stopped")
        self._queue.clear()
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._take()
            if batch:
                await self._run_batch(batch)
            else:
                self._wake.clear()

    def _take(self) -> list[_Item]:
        """The next batch out of the queue: the oldest, and what waits with its size.

        Pictures of other sizes keep their places; items that were cancelled are dropped.
        """
        alive = [item for item in self._queue if not item.future.done()]
        alike = [item for item in alive if item.shapes == alive[0].shapes]
        batch = alike[: self._times.batch(len(alike))] if alike else []
        self._queue = deque(item for item in alive if item not in batch)
        return batch

    async def _run_batch(self, batch: list[_Item]) -> None:
        start = time.perf_counter()
        self._busy_until = start + self._times.total_s(len(batch))
        rows = [item.feeds for item in batch]
        call = asyncio.get_running_loop().run_in_executor(self._executor, self._run, rows)
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            call.cancel()  # where another model's call is still before it
            _fail(batch, "the gateway has stopped")
            raise
        infer_s = time.perf_counter() - start
        self._busy_until = 0.0
        cause = call.exception()
        if cause is not None:
            log.error("a batch of %d failed", len(batch), exc_info=cause)
            _fail(batch, "the model failed on this picture; the log says why", cause)
            return
        _answer(batch, call.result(), start, infer_s)


def _answer(batch: list[_Item], pictures: list[Pixels], start: float, infer_s: float) -> None:
    for item, pixels in zip(batch, pictures, strict=True):
        if not item.future.done():
            item.future.set_result(Inferred(pixels, start - item.queued_at, infer_s))


def _fail(batch: list[_Item], detail: str, cause: BaseException | None = None) -> None:
    for item in batch:
        if not item.future.done():
            error = InferenceError(detail)
            error.__cause__ = cause
            item.future.set_exception(error)
