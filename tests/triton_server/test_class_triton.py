"""A class-conditional model in a real Triton: one number a picture, batches, and the gate."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from class_pictures import publish_classes
from shipped_model import drawn_here
from tritonclient.grpc import InferInput

from export.gate.published import Request, verify_repository
from serve.backend_triton import TritonBackend
from serve.model import load_model

pytestmark = pytest.mark.triton


def drawn_there(server, name: str, feeds: dict) -> np.ndarray:
    """The server's pictures of one request with several rows."""
    shapes = {"class_labels": (-1, 1), "noise": feeds["noise"].shape}
    inputs = []
    for tensor, array in feeds.items():
        array = array.reshape(shapes[tensor])
        datatype = "INT64" if array.dtype == np.int64 else "FP32"
        inputs.append(InferInput(tensor, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array)
    return server.client.infer(name, inputs).as_numpy("image")


@pytest.fixture
def published(server) -> Path:
    """The model, published once, and loaded with its warm-up: of every batch size."""
    folder = server.repository / "things" / "1"
    if not folder.is_dir():
        assert publish_classes(server.repository, "things") == folder
    server.load("things")
    return folder


def test_every_row_of_a_batch_is_the_picture_of_its_own_class(server, published) -> None:
    noise = np.random.default_rng(1).standard_normal((5, 3, 8, 8), np.float32)
    feeds = {"class_labels": np.array([4, 0, 3, 0, 1]), "noise": noise}
    np.testing.assert_array_equal(
        drawn_there(server, "things", feeds), drawn_here(published, feeds)
    )


def test_the_gate_finds_the_servers_pictures_to_be_those_of_the_graph(server, published) -> None:
    request = Request("triton", url=server.url, rows=5)
    parity = verify_repository(
        server.repository, "things", request=request, report=lambda line: None
    )
    assert parity.level == "bitwise"


def test_the_gateway_finds_it_ready_and_gets_the_same_picture(server, published) -> None:
    model = load_model(server.repository, "things")
    feeds = {**model.condition(2), "noise": model.noise(7)}

    async def run():
        backend = TritonBackend(model, server.url)
        await backend.start()
        assert backend.ready, backend.why_not
        made = await backend.infer(feeds, 20.0)
        await backend.close()
        return made.pixels

    here = {name: array[None] for name, array in feeds.items()}
    np.testing.assert_array_equal(asyncio.run(run()), drawn_here(published, here)[0])
