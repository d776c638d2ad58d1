"""The micro-batcher: pictures of different callers share a call of the model.

It is work-conserving: an idle model takes what waits at once and never waits for company. Batches
form while a call runs, in the callers' fair order, of the batch sizes that ServiceTimes found to
pay; a batch holds pictures of one size.

Nobody is delayed, because it does not pay: with Poisson arrivals at a tenth to nine tenths of
saturation, holding a lone picture back for company makes the mean time longer or leaves it as it
is, even where eight take as long as one. At a low load company does not come in time, at a high
one it is there when the call before ends. tests/serve/test_batching.py shows it.
"""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from serve.backend import Inferred
from serve.errors import DeadlineError, InferenceError
from serve.fair_queue import FairQueue
from serve.images import Pixels
from serve.machine import Machine
from serve.metrics import ModelMetrics, unobserved
from serve.model import Feeds
from serve.service_times import Drift, RunBatch, ServiceTimes
from serve.turn import USUAL, Turn

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Item:
    """A picture that was asked for; `ends` is its deadline, of time.perf_counter."""

    feeds: Feeds
    turn: Turn
    ends: float
    future: "asyncio.Future[Inferred]"
    queued_at: float = field(default_factory=time.perf_counter)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Only items of equal shapes can share a batch."""
        return {name: value.shape for name, value in self.feeds.items()}


class _Call(NamedTuple):
    """What a call of the model gave, and when it ran, of time.perf_counter."""

    pictures: list[Pixels]
    began: float
    ended: float


class Batcher:
    """A queue in front of `run`, which is called on as many batches at a time as `times` says.

    Batchers that are given the same machine share its cores; else each has one of its own.
    """

    def __init__(
        self,
        run: RunBatch,
        times: ServiceTimes,
        machine: Machine | None = None,
        metrics: ModelMetrics | None = None,
    ) -> None:
        self._run = run
        self._times = times
        self._drift = Drift()
        self._metrics = metrics or unobserved()
        self._queue: FairQueue[_Item] = FairQueue()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._owns_machine = machine is None
        self._machine = machine or Machine(times.calls)
        self._cores = self._machine.cores // times.calls  # that a call holds
        self._ends: dict[int, float] = {}  # when each call that runs should be over
        self._machine.join(self)
        self._workers = [asyncio.ensure_future(self._work(i)) for i in range(times.calls)]

    def submit(
        self, feeds: Feeds, within_s: float = math.inf, turn: Turn = USUAL
    ) -> "asyncio.Future[Inferred]":
        """Queue one picture; its future may be cancelled as long as it waits.

        It fails with DeadlineError if others go before it for so long that `within_s` cannot be
        kept: the model is not kept busy with what comes too late.
        """
        future: asyncio.Future[Inferred] = asyncio.get_running_loop().create_future()
        item = _Item(feeds, turn, time.perf_counter() + within_s, future)
        future.add_done_callback(partial(self._settled, item))
        self._queue.put(item, turn)
        self._wake_one()
        return future

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        """Seconds until `pictures` more of this turn would be made; of 0: until one would begin.

        By the measured times and how much longer calls take now, if nobody overtakes them.
        """
        ahead = self._queue.ahead(turn, max(1, pictures)) - max(0, pictures - 1)
        running_s, waiting = self.running_s, len(self._queue)
        busy = waiting > 0 or len(self._ends) == self._times.calls
        waiting_s = self._times.wait_s(pictures, ahead, waiting, busy)
        others_s = self._machine.others_s(self, 1 + (ahead + pictures) // max(self._times.seconds))
        return running_s + self._drift.factor * waiting_s + others_s

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._queue)

    @property
    def running_s(self) -> float:
        """Seconds until all would be free, if they shared what their present calls still take.

        0 where one is free now: who comes next waits for none of them.
        """
        if len(self._ends) < self._times.calls:
            return 0.0
        now = time.perf_counter()
        return sum(max(0.0, end - now) for end in self._ends.values()) / self._times.calls

    @property
    def waiting_s(self) -> float:
        """Seconds that all take that wait."""
        return self._drift.factor * self._times.total_s(len(self._queue))

    @property
    def call_s(self) -> float:
        """Seconds of the largest batch."""
        return self._drift.factor * self._times.longest_s

    async def close(self) -> None:
        """Stop. What still waits fails; a call that runs is left to end in its thread."""
        workers, self._workers = self._workers, []  # their tracebacks hold all that is here
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        _fail(list(self._queue), "the gateway has stopped")
        self._machine.leave(self)
        if self._owns_machine:
            self._machine.close()

    def _settled(self, item: _Item, future: "asyncio.Future[Inferred]") -> None:
        """A picture is made, or has failed, or its caller has left."""
        waited = item in self._queue
        self._queue.remove(item)
        if future.cancelled():
            self._metrics.cancelled("queued" if waited else "running")

    async def _work(self, number: int) -> None:
        """One of those that call the model, each on one batch at a time."""
        while True:
            if not self._queue:
                await self._sleep()
            async with self._machine.turn(self._cores):
                batch = self._take()
                if batch:
                    await self._run_batch(batch, number)
            if not batch:
                await asyncio.sleep(0)  # what was cancelled leaves the queue meanwhile

    async def _sleep(self) -> None:
        """Until something waits."""
        woken = asyncio.get_running_loop().create_future()
        self._idle.append(woken)
        await woken

    def _wake_one(self) -> None:
        while self._idle:
            woken = self._idle.popleft()
            if not woken.done():
                woken.set_result(None)
                return

    def _take(self) -> list[_Item]:
        """The next batch out of the queue: whose turn it is, and what waits with its size.

        What waits is shared out among the calls that run at a time. Pictures of other sizes keep
        their places. Those that would be late in it are dropped.
        """
        calls, most = self._times.calls, max(self._times.seconds)
        while alike := list(itertools.islice(self._alike(), calls * most)):
            batch = alike[: self._times.batch(-(-len(alike) // calls))]
            taken_s = max(1.0, self._drift.factor) * self._times.seconds[len(batch)]
            ends = time.perf_counter() + taken_s
            late = [item for item in batch if item.ends < ends]
            for item in late:
                self._drop(item, taken_s)
            if not late:
                for item in batch:
                    self._queue.take(item)
                return batch
        return []

    def _alike(self) -> Iterator[_Item]:
        """What waits with the shapes of the next, in fair order."""
        waiting = (item for item in self._queue if not item.future.done())
        first = next(waiting, None)
        if first is not None:
            shapes = first.shapes
            yield first
            yield from (item for item in waiting if item.shapes == shapes)

    def _drop(self, item: _Item, taken_s: float) -> None:
        self._queue.remove(item)
        waited_s = time.perf_counter() - item.queued_at
        detail = (
            f"others went before it: {waited_s * 1e3:.0f} ms have passed, the model takes "
            f"{taken_s * 1e3:.0f} ms, the deadline is {(item.ends - item.queued_at) * 1e3:.0f} ms"
        )
        item.future.set_exception(DeadlineError(detail, self.wait_s(0, item.turn)))

    async def _run_batch(self, batch: list[_Item], number: int) -> None:
        start, measured_s = time.perf_counter(), self._times.seconds[len(batch)]
        self._ends[number] = start + self._drift.factor * measured_s
        rows = [item.feeds for item in batch]
        call = asyncio.get_running_loop().run_in_executor(self._machine.executor, self._timed, rows)
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            call.cancel()  # where a model is being measured
            _fail(batch, "the gateway has stopped")
            raise
        del self._ends[number]
        cause = call.exception()
        if cause is not None:
            log.error("a batch of %d failed", len(batch), exc_info=cause)
            _fail(batch, "the model failed on this picture; the log says why", cause)
            return
        made = call.result()
        self._drift.add(measured_s, made.ended - start)
        self._metrics.batch(len(batch), made.ended - made.began)
        _answer(batch, made)

    def _timed(self, rows: list[Feeds]) -> _Call:
        began = time.perf_counter()
        return _Call(self._run(rows), began, time.perf_counter())


def _answer(batch: list[_Item], made: _Call) -> None:
    for item, pixels in zip(batch, made.pictures, strict=True):
        if not item.future.done():
            queue_s = made.began - item.queued_at
            item.future.set_result(Inferred(pixels, queue_s, made.ended - made.began))


def _fail(items: list[_Item], detail: str, cause: BaseException | None = None) -> None:
    for item in items:
        if not item.future.done():
            error = InferenceError(detail)
            error.__cause__ = cause
            item.future.set_exception(error)
