"""The gateway in front of Triton, callers that load it, and the pictures that are right."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import same_pictures

from serve.app import create_app
from serve.settings import Settings

PROMPTS = ("a small red circle on the left", "a blue square", "a shape")


def body(seed: int) -> dict[str, object]:
    """A request whose prompt hangs on its seed."""
    return {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}


@contextmanager
def gateway(repository: Path, model: str, triton: str, *options: object) -> Iterator[httpx.Client]:
    """`distill serve` with a Triton at HOST:PORT; a client of it."""
    served = ("--repository", repository, "--model", model, "--triton", triton)
    limits = httpx.Limits(max_connections=64)
    with (
        same_pictures.gateway(*served, *options) as url,
        httpx.Client(base_url=url, timeout=30, limits=limits) as client,
    ):
        yield client


def ready_s(client: httpx.Client, limit_s: float = 10.0) -> float:
    """Seconds until the gateway is ready."""
    start = time.monotonic()
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() - start < limit_s, client.get("/readyz").text
        time.sleep(0.05)
    return time.monotonic() - start


def drawn_in_process(repository: Path, model: str, seeds: range) -> dict[int, bytes]:
    """The files that a gateway on ONNX Runtime answers with, one request at a time."""

    async def draw() -> dict[int, bytes]:
        app = create_app(Settings(repository=repository, model=model, threads=1))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            answers = {seed: await client.post("/generate", json=body(seed)) for seed in seeds}
        assert {answer.status_code for answer in answers.values()} == {200}
        return {seed: answer.content for seed, answer in answers.items()}

    return asyncio.run(draw())


class Load:
    """Callers that ask again and again, and what each was answered after how many seconds."""

    def __init__(self, client: httpx.Client, callers: int = 8) -> None:
        self.answers: list[tuple[int, httpx.Response, float]] = []
        self._client = client
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,)) for seed in range(callers)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"

    def wait_for(self, status: int) -> None:
        """Until a request has been answered so."""
        end = time.monotonic() + 10
        while all(answer.status_code != status for _, answer, _ in [*self.answers]):
            assert time.monotonic() < end, f"nothing was answered with {status}"
            time.sleep(0.02)

    def wait_for_picture(self, pictures: dict[int, bytes]) -> None:
        """Until a caller was given its picture of these."""
        end = time.monotonic() + 20
        while all(answer.content != pictures[seed] for seed, answer, _ in [*self.answers]):
            assert time.monotonic() < end, f"none of these: {self.answers[-1][1].headers}"
            time.sleep(0.02)

    def wait_for_more(self, answers: int) -> None:
        """Until so many further requests have been answered."""
        end, wanted = time.monotonic() + 20, len(self.answers) + answers
        while len(self.answers) < wanted:
            assert time.monotonic() < end, "requests hang"
            time.sleep(0.02)

    def _ask(self, seed: int) -> None:
        while not self._over.is_set():
            start = time.monotonic()
            answer = self._client.post("/generate", json=body(seed))
            self.answers.append((seed, answer, time.monotonic() - start))
            if answer.status_code != 200:
                time.sleep(0.05)
