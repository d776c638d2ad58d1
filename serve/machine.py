"""What the models of one process run on together: its cores, held by one call after another."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from serve.give_way import give_way


class Load(Protocol):
    """What one model has to do."""

    @property
    def running_s(self) -> float:
        """Seconds that its present calls still take."""

    @property
    def waiting_s(self) -> float:
        """Seconds that all the pictures take that wait for it."""

    @property
    def call_s(self) -> float:
        """Seconds of its longest call."""


class Machine:
    """So that the times which were measured of each model alone stay true beside the others.

    A call holds as many of the cores as it has threads. Who asks first gets them first, also who
    asks for more: so models take turns, and none waits for longer than a call of each other one.
    """

    def __init__(self, cores: int = 1) -> None:
        self.cores = cores
        self.executor = ThreadPoolExecutor(cores, "infer", initializer=give_way)
        self._free = cores
        self._asked: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._loads: set[Load] = set()

    @asynccontextmanager
    async def turn(self, cores: int = 1) -> AsyncIterator[None]:
        """Hold so many cores, once it is one's turn."""
        await self._take(cores)
        try:
            yield
        finally:
            self._give(cores)

    @contextmanager
    def alone(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Hold all of them, in a thread that is not the loop's: no model is called meanwhile."""
        asyncio.run_coroutine_threadsafe(self._take(self.cores), loop).result()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(self._give, self.cores)

    def join(self, load: Load) -> None:
        """This one runs here too from now on."""
        self._loads.add(load)

    def leave(self, load: Load) -> None:
        """It does no longer; without effect if it never did."""
        self._loads.discard(load)

    def others_s(self, load: Load, calls: int) -> float:
        """Seconds that the others take, at the most, before so many calls of this one are made."""
        others = (other for other in self._loads if other is not load)
        return sum(o.running_s + min(o.waiting_s, calls * o.call_s) for o in others)

    def close(self) -> None:
        """Let the threads go, once the calls that run in them have ended."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def _take(self, cores: int) -> None:
        assert 1 <= cores <= self.cores, f"{cores} of {self.cores} cores"
        if not self._asked and cores <= self._free:
            self._free -= cores
            return
        granted = asyncio.get_running_loop().create_future()
        self._asked.append((cores, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # both at once
                self._give(cores)
            raise

    def _give(self, cores: int) -> None:
        self._free += cores
        while self._asked and (self._asked[0][1].done() or self._asked[0][0] <= self._free):
            wanted, granted = self._asked.popleft()
            if not granted.done():
                self._free -= wanted
                granted.set_result(None)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: fewer than the machine's where it is bound to some.

    `quota` is where Linux tells what a container may use, as in "200000 100000" for two cores.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    try:
        used_us, _, period_us = quota.read_text("ascii").partition(" ")
        return min(cores, max(1, round(int(used_us) / int(period_us))))
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return cores
