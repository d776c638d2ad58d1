"""The gateway as a process of its own in front of Triton, and the pictures that are right."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from serve.app import create_app
from serve.settings import Settings

ROOT = Path(__file__).parents[2]
PROMPTS = ("a small red circle on the left", "a blue square", "a shape")


def body(seed: int) -> dict[str, object]:
    """A request whose prompt hangs on its seed."""
    return {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}


@contextmanager
def gateway(repository: Path, model: str, triton: str) -> Iterator[httpx.Client]:
    """`distill serve` with a Triton at HOST:PORT; a client of it."""
    command = [sys.executable, "-m", "singlepass", "serve", "--port", "0", "--model", model]
    command += ["--repository", str(repository)]
    env = os.environ | {"SINGLEPASS_TRITON": triton, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            process.stdout.readline()
            limits = httpx.Limits(max_connections=64)
            with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
                yield client
        finally:
            process.terminate()


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
