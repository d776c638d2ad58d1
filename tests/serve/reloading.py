"""What the tests of a living repository share: a gateway on it, and what each version draws."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
from fake_backend import FakeBackend, client_of

from serve.app import create_app
from serve.metrics import Metrics
from serve.repository import Repository
from serve.settings import Settings

T = TypeVar("T")

RED = {"prompt": "a red circle", "seed": 5}

OpenFake = Callable[[str], FakeBackend]
Scenario = Callable[[httpx.AsyncClient, Repository], Awaitable[T]]


def on(root: Path, scenario: Scenario[T], **changes: object) -> T:
    """The result of a scenario with a gateway that looks at the repository only when told to."""
    settings = Settings(repository=root, threads=1, **{"reload_s": 3600.0} | changes)

    async def run() -> T:
        app = create_app(settings)
        async with client_of(app) as client:
            return await scenario(client, app.state.gateway.repository)

    return asyncio.run(run())


def on_fakes(root: Path, scenario: Scenario[T], open_backend: OpenFake, **changes: object) -> T:
    """The same, on back ends that the test opens for a version's label, as in "tiny/1"."""
    settings = Settings(repository=root, **{"reload_s": 3600.0} | changes)
    metrics = Metrics("")

    async def run() -> T:
        repository = Repository(settings, lambda model, _: open_backend(model.label), metrics)
        app = create_app(settings, FakeBackend())
        async with client_of(app) as client:
            gateway = replace(app.state.gateway, repository=repository, metrics=metrics)
            app.state.gateway = gateway
            try:
                await repository.start()
                return await scenario(client, repository)
            finally:
                await repository.close()

    return asyncio.run(run())


async def draw(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    """One picture."""
    return await client.post("/generate", json=RED | fields)


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds; a test that waits for ever fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
