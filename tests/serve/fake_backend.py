"""A back end that takes a function, and a client of an application with its lifespan."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import numpy as np
from fastapi import FastAPI

from serve.app import create_app
from serve.backend import Backend, Inferred
from serve.images import Pixels
from serve.model import Feeds
from serve.settings import Settings
from serve.turn import USUAL, Turn

Function = Callable[[Feeds], Awaitable[Pixels]]


async def grey(feeds: Feeds) -> Pixels:
    """A picture without a model."""
    return np.full((64, 64, 3), 128, np.uint8)


class FakeBackend:
    """Each picture is what `function` makes of it; the wait is what the test says."""

    def __init__(self, function: Function = grey, wait_s: float = 0.0, each_s: float = 0.0) -> None:
        self.function = function
        self.queue_s = wait_s
        self.each_s = each_s
        self.ready = False
        self.why_not = "the model is not loaded"
        self.within_s: list[float] = []
        self.turns: list[Turn] = []
        self.pending: set[asyncio.Future[Inferred]] = set()

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False

    @property
    def waiting(self) -> int:
        return len(self.pending)

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        return self.queue_s + pictures * self.each_s

    def infer(
        self, feeds: Feeds, within_s: float = math.inf, turn: Turn = USUAL
    ) -> asyncio.Future[Inferred]:
        self.within_s.append(within_s)
        self.turns.append(turn)
        future = asyncio.ensure_future(self._infer(feeds))
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        return future

    async def _infer(self, feeds: Feeds) -> Inferred:
        return Inferred(await self.function(feeds), 0.0, 0.0)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client while the application's lifespan is on; bugs come back as answers."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield client


def ask(settings: Settings, body: object, backend: Backend | None = None, **options: object):
    """One POST /generate to a gateway that lives for this one request."""

    async def post() -> httpx.Response:
        async with client_of(create_app(settings, backend or FakeBackend())) as client:
            kind = "json" if not isinstance(body, bytes) else "content"
            headers = {"Content-Type": "application/json"} | options.get("headers", {})
            return await client.post("/generate", **{kind: body}, headers=headers)

    return asyncio.run(post())
