"""Load on a server: open loop, where requests come whether or not the server keeps up, or closed.

In the open loop arrivals are Poisson, drawn before the start, and a latency counts from the moment
at which its request was due, not from the one at which it could be sent: so a server that stalls
is charged for all who would have asked meanwhile (no coordinated omission).
"""

import asyncio
import hashlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from alarm import Alarm
from connection import Answer, Connection, connect
from histogram import Histogram

LAST_ANSWER_S = 30.0  # how long after the end an answer is waited for


class Ask(NamedTuple):
    """A request's bytes, and the SHA-256 of the picture that answers it."""

    request: bytes
    digest: bytes


class Target(NamedTuple):
    """Where a server listens, and how a picture is read out of its answer."""

    port: int
    picture: Callable[[Answer], bytes] = lambda answer: answer.body
    host: str = "127.0.0.1"


@dataclass
class Load:
    """What was asked and what came back. `good`: seconds of the right pictures."""

    asked: int = 0
    seconds: float = 0.0
    good: Histogram = field(default_factory=Histogram)
    refused: Histogram = field(default_factory=Histogram)  # 429 and 503, from when they were sent
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0  # 200, but another picture
    last_s: float = 0.0  # when the last answer came

    @property
    def rate(self) -> float:
        """Right pictures per second."""
        return self.good.count / self.seconds

    @property
    def unanswered(self) -> int:
        """Requests without an answer, or with a broken one."""
        return self.asked - sum(self.statuses.values()) + self.statuses[0]

    def count(self, answer: Answer, picture: bytes, ask: Ask, due: float, sent: float) -> None:
        """Enter one answer, which has come now."""
        now = time.monotonic()
        self.statuses[answer.status] += 1
        if answer.status in (429, 503):
            self.refused.add(now - sent)
        elif answer.status == 200 and hashlib.sha256(picture).digest() == ask.digest:
            self.good.add(now - due)
        elif answer.status == 200:
            self.wrong += 1


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start at which requests are due, `rate` a second on average."""
    stream = random.Random(seed)
    gaps = (stream.expovariate(rate) for _ in range(int(2 * rate * seconds) + 100))
    return [due for due in accumulate(gaps) if due < seconds]


async def open_loop(
    target: Target, asks: Sequence[Ask], arrivals: Sequence[float], connections: int
) -> Load:
    """Ask at the times of `arrivals`, `asks` in turn; waits for the last answer."""
    run = _Open(target, asks, arrivals, await connect(target.host, target.port, connections))
    return await run.done()


class _Open:
    """One run of the open loop. A request that finds no free connection waits for one, and ages."""

    def __init__(
        self,
        target: Target,
        asks: Sequence[Ask],
        arrivals: Sequence[float],
        connections: list[Connection],
    ) -> None:
        self._target, self._asks, self._arrivals = target, asks, arrivals
        self._free = deque(connections)
        self._pool = connections
        self._due: deque[int] = deque()  # numbers of requests that wait for a connection
        self._in_work: dict[Connection, tuple[int, float]] = {}
        self._replacing: list[asyncio.Task[None]] = []
        self._next = 0
        self._over = asyncio.Event()
        self._start = time.monotonic() + 0.01
        self._load = Load(seconds=arrivals[-1])
        self._alarm = Alarm(self._ring)
        for connection in connections:
            connection.on_answer = self._answered

    async def done(self) -> Load:
        """The figures, once everything has been answered or given up."""
        self._alarm.set(self._start + self._arrivals[0])
        try:
            async with asyncio.timeout(self._arrivals[-1] + LAST_ANSWER_S):
                await self._over.wait()
        except TimeoutError:
            pass  # what has no answer yet is counted as unanswered
        self._alarm.close()
        for connection in self._pool:
            connection.on_answer = lambda connection, answer: None
            connection.close()
        self._load.last_s = time.monotonic() - self._start
        return self._load

    def _ring(self) -> None:
        now = time.monotonic() - self._start
        arrivals, number = self._arrivals, self._next
        while number < len(arrivals) and arrivals[number] <= now:
            self._due.append(number)
            number += 1
        self._load.asked = self._next = number
        self._send()
        if number < len(arrivals):
            self._alarm.set(self._start + arrivals[number])

    def _send(self) -> None:
        while self._due and self._free:
            connection = self._free.pop()
            if connection.closing:  # the server gave it up while it was idle
                self._replacing.append(asyncio.ensure_future(self._replace(connection)))
                continue
            number = self._due.popleft()
            self._in_work[connection] = number, time.monotonic()
            connection.send(self._asks[number % len(self._asks)].request)

    def _answered(self, connection: Connection, answer: Answer) -> None:
        number, sent = self._in_work.pop(connection)
        ask = self._asks[number % len(self._asks)]
        due = self._start + self._arrivals[number]
        self._load.count(answer, self._target.picture(answer), ask, due, sent)
        if connection.open:
            self._free.append(connection)
        else:
            self._replacing.append(asyncio.ensure_future(self._replace(connection)))
        self._send()
        if self._next == len(self._arrivals) and not self._in_work and not self._due:
            self._over.set()

    async def _replace(self, old: Connection) -> None:
        """A new connection for one that the server has closed; its place is lost if it refuses."""
        old.close()
        try:
            (new,) = await connect(self._target.host, self._target.port, 1)
        except OSError:
            return
        new.on_answer = self._answered
        self._pool.append(new)
        self._free.append(new)
        self._send()


async def closed_loop(
    target: Target, asks: Sequence[Ask], connections: int, seconds: float
) -> Load:
    """As many requests at a time as connections, each asked as the one before is answered.

    It ends when a connection breaks: a closed loop that shrinks measures nothing.
    """
    load, numbers = Load(), iter(range(10**9))
    pool = await connect(target.host, target.port, connections)
    in_work: dict[Connection, tuple[Ask, float]] = {}
    over = asyncio.Event()
    start = time.monotonic()

    def ask_next(connection: Connection) -> None:
        ask = asks[next(numbers) % len(asks)]
        in_work[connection] = ask, time.monotonic()
        load.asked += 1
        connection.send(ask.request)

    def answered(connection: Connection, answer: Answer) -> None:
        ask, sent = in_work.pop(connection)
        load.count(answer, target.picture(answer), ask, sent, sent)
        if not connection.open:
            over.set()
        elif not over.is_set():
            ask_next(connection)

    for connection in pool:
        connection.on_answer = answered
        ask_next(connection)
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        over.set()
    load.seconds = load.last_s = time.monotonic() - start
    load.asked -= len(in_work)  # cut off by the end, not lost
    for connection in pool:
        connection.on_answer = lambda connection, answer: None
        connection.close()
    return load
