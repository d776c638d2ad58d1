"""One student, one prompt, one seed: the same picture, whoever draws it and beside whom."""

import asyncio
import base64
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import singlepass
from export.gate.session import open_session
from serve.app import create_app
from serve.backend_ort import OrtBackend
from serve.model import Model, load_model
from serve.service_times import ServiceTimes
from serve.settings import Settings

PROMPTS = ("a small red circle", "blue", "a", "An astronaut, 1890!")
CASES = [(prompt, seed) for prompt in PROMPTS for seed in (0, 1, 2**40 + 2)]
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class BatchingBackend(OrtBackend):
    """The real back end; notes how many rows travelled together."""

    sizes: list[int]

    def run(self, rows):
        self.sizes.append(len(rows))
        return super().run(rows)


@pytest.fixture(scope="module")
def model(tiny_export) -> Model:
    return load_model(tiny_export.repository)


@pytest.fixture(scope="module")
def served(tiny_export) -> Settings:
    return Settings(repository=tiny_export.repository, threads=1, max_images=8, max_queue=64)


@pytest.fixture(scope="module")
def alone(served: Settings) -> dict[tuple[str, int], bytes]:
    """The PNG of each case, asked for one at a time."""

    async def ask() -> dict[tuple[str, int], bytes]:
        async with gateway(served) as client:
            return {case: await png(client, *case) for case in CASES}

    return asyncio.run(ask())


@pytest.fixture
def every_batch_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where each larger batch is faster: what waits travels together."""
    times = ServiceTimes(dict.fromkeys(range(1, 9), 0.001))
    monkeypatch.setattr("serve.backend_ort.measure", lambda *asked: times)


@asynccontextmanager
async def gateway(served: Settings, backend=None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(served, backend)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield client


async def png(client: httpx.AsyncClient, prompt: str, seed: int) -> bytes:
    answer = await client.post("/generate", json={"prompt": prompt, "seed": seed})
    assert answer.status_code == 200, answer.text
    return answer.content


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_stock_diffusers_the_graph_and_the_gateway_draw_one_picture(
    tiny_student, tiny_export, model, alone
) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_student)
    pipe.set_progress_bar_config(disable=True)
    graph = open_session(tiny_export.exported.folder / "model.onnx", threads=1)
    for prompt, seed in CASES:
        generator = torch.Generator("cpu").manual_seed(seed)
        stock = pipe(prompt, num_inference_steps=1, guidance_scale=0.0, generator=generator)
        feeds = {**model.tokenize(prompt), "noise": model.noise(seed)}
        (drawn,) = graph({name: value[None] for name, value in feeds.items()})
        gap = np.abs(pixels(alone[prompt, seed]).astype(int) - np.asarray(stock.images[0]))
        assert gap.max() <= 1
        assert np.array_equal(drawn, pixels(alone[prompt, seed]))


def test_prompts_and_seeds_make_different_pictures(alone) -> None:
    """Without this, everything below would hold for a constant picture too."""
    assert len({pixels(data).tobytes() for data in alone.values()}) == len(CASES)
    assert min(pixels(data).std() for data in alone.values()) > 10


@few
@given(rows=st.lists(st.sampled_from(CASES), min_size=1, max_size=8))
def test_a_picture_does_not_hang_on_its_batch(model, every_batch_pays, alone, rows) -> None:
    async def together() -> list[np.ndarray]:
        backend = BatchingBackend(model, threads=1)
        backend.sizes = []
        await backend.start()
        feeds = [{**model.tokenize(prompt), "noise": model.noise(seed)} for prompt, seed in rows]
        inferred = await asyncio.gather(*map(backend.infer, feeds))
        await backend.close()
        assert backend.sizes == [len(rows)]
        return [one.pixels for one in inferred]

    for case, drawn in zip(rows, asyncio.run(together()), strict=True):
        assert np.array_equal(drawn, pixels(alone[case]))


@few
@given(rows=st.lists(st.sampled_from(CASES), min_size=2, max_size=16))
def test_a_file_does_not_hang_on_who_asks_at_the_same_time(
    served, model, every_batch_pays, alone, rows
) -> None:
    backend = BatchingBackend(model, threads=1)
    backend.sizes = []

    async def together() -> list[bytes]:
        async with gateway(served, backend) as client:
            return await asyncio.gather(*(png(client, *case) for case in rows))

    assert asyncio.run(together()) == [alone[case] for case in rows]
    different = len(set(rows))
    assert different <= sum(backend.sizes) <= len(rows)  # equal requests in flight are drawn once
    assert max(backend.sizes) > 1 or different == 1


def test_several_pictures_of_one_request_are_those_of_its_seeds(served, every_batch_pays) -> None:
    async def ask() -> tuple[list[bytes], list[bytes]]:
        async with gateway(served) as client:
            body = {"prompt": "blue", "seed": 7, "num_images": 5, "format": "webp"}
            many = (await client.post("/generate", json=body)).json()
            single = [
                (
                    await client.post("/generate", json=body | {"seed": seed, "num_images": 1})
                ).content
                for seed in range(7, 12)
            ]
            return [base64.b64decode(image["image"]) for image in many["images"]], single

    many, single = asyncio.run(ask())
    assert many == single


def test_a_picture_is_the_same_after_a_restart(served, alone) -> None:
    async def ask() -> list[bytes]:
        async with gateway(served) as client:
            return [await png(client, *case) for case in reversed(CASES)]

    assert asyncio.run(ask()) == [alone[case] for case in reversed(CASES)]


@pytest.mark.parametrize("case", CASES[::5])
def test_distill_generate_writes_the_bytes_of_the_gateway(
    tiny_export, alone, tmp_path: Path, case
) -> None:
    out = tmp_path / "a.png"
    repository = str(tiny_export.repository)
    arguments = ["generate", case[0], "--seed", str(case[1]), "-o", str(out)]
    assert singlepass.main([*arguments, "--repository", repository, "--threads", "1"]) == 0
    assert out.read_bytes() == alone[case]


def test_another_process_with_another_hash_seed_writes_the_same_bytes(
    tiny_export, alone, tmp_path: Path
) -> None:
    prompt, seed = CASES[1]
    out = tmp_path / "a.png"
    options = ["--repository", tiny_export.repository, "--model", "tiny", "--threads", "1"]
    command = [sys.executable, singlepass.__file__, "generate", prompt, "--seed", str(seed)]
    subprocess.run(
        [*command, "-o", out, *options],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert out.read_bytes() == alone[prompt, seed]
