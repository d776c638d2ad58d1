"""One version of a model, open: what makes its pictures, and who uses it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

from serve.admission import Admission
from serve.backend import Backend
from serve.flights import Flights
from serve.generate import Answer, Generator
from serve.metrics import ModelMetrics
from serve.model import Model
from serve.settings import Settings

LEAVING_POLL_S = 0.02

OpenBackend = Callable[[Model, ModelMetrics], Backend]


@dataclass(eq=False)
class Served:
    """What answers for a version: its back end, and the requests that are in its work."""

    model: Model
    backend: Backend
    generator: Generator
    admission: Admission
    metrics: ModelMetrics
    flights: Flights[Answer] = field(default_factory=Flights)
    users: int = 0

    @property
    def name(self) -> str:
        """The model's name, without the version."""
        return self.model.manifest.model

    @property
    def version(self) -> int:
        """The number of its folder."""
        return self.model.manifest.version

    @property
    def idle(self) -> bool:
        """Whether nobody uses it and everything that it accepted has been answered."""
        return self.users == 0 and self.admission.idle

    def appear(self) -> None:
        """From now on the figures of its model are its own."""
        self.metrics.serves(self.version, self.model.manifest.digest)
        self.metrics.watch(
            lambda: self.admission.open, lambda: self.backend.wait_s(0), lambda: self.backend.ready
        )

    @contextmanager
    def used(self) -> Iterator[None]:
        """It stays open for as long as a request uses it, also once another version answers."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    async def retire(self) -> None:
        """Close it once the requests that came to it have been answered."""
        while not self.idle:
            await asyncio.sleep(LEAVING_POLL_S)
        await self.close()

    async def close(self) -> None:
        """Let go of everything; what is still in work fails."""
        await self.backend.close()
        self.generator.close()


async def open_served(
    model: Model, settings: Settings, open_backend: OpenBackend, metrics: ModelMetrics
) -> Served:
    """Start a model's back end; raises RepositoryError, with nothing left open, if it cannot."""
    async with AsyncExitStack() as opened:
        backend = open_backend(model, metrics)
        opened.push_async_callback(backend.close)
        generator = Generator(model, backend, settings.encode_workers, metrics)
        opened.callback(generator.close)
        await backend.start()
        opened.pop_all()
    admission = Admission(backend, settings.max_queue, settings.keys is not None)
    return Served(model, backend, generator, admission, metrics)
