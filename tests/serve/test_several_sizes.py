"""One graph with open sides: noise of each size's shape, and no batch of two sizes."""

import asyncio
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_backend import ask
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_repository import LENGTH, write_manifest, write_version

from serve.backend_ort import OrtBackend
from serve.batcher import Batcher
from serve.errors import RepositoryError
from serve.generate import generate_file
from serve.manifest import read_manifest
from serve.model import load_model
from serve.service_times import ServiceTimes
from serve.settings import Settings

SIZES = ["64x64", "96x64", "64x128"]


def open_graph() -> onnx.ModelProto:
    """noise [B, 4, h, w] enlarged 8 times, its first three channels as colours: [B, 8h, 8w, 3]."""
    constants = {
        "first": np.array([0]),
        "fourth": np.array([3]),
        "channels": np.array([1]),
        "scales": np.array([1, 1, 8, 8], np.float32),
        "high": np.array(255, np.float32),
        "low": np.array(0, np.float32),
        "gain": np.array(60, np.float32),
    }
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Slice", ["noise", "first", "fourth", "channels"], ["rgb"]),
        node("Resize", ["rgb", "", "scales"], ["large"], mode="nearest"),
        node("Transpose", ["large"], ["last"], perm=[0, 2, 3, 1]),
        node("Mul", ["last", "gain"], ["levels"]),
        node("Clip", ["levels", "low", "high"], ["clipped"]),
        node("Cast", ["clipped"], ["image"], to=TensorProto.UINT8),
    ]
    inputs = [
        *(info(name, TensorProto.INT64, ["B", LENGTH]) for name in ("input_ids", "input_ids_2")),
        info("noise", TensorProto.FLOAT, ["B", 4, "h", "w"]),
    ]
    output = info("image", TensorProto.UINT8, ["B", "8*h", "8*w", 3])
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "open", inputs, [output], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_open(repository: Path, **changes: object) -> Path:
    """A version of that graph, with the manifest that the exporter would write."""
    folder = write_version(repository)
    (folder / "model.onnx").write_bytes(open_graph().SerializeToString())
    ids = [
        {"name": name, "dtype": "int64", "shape": [None, LENGTH]}
        for name in ("input_ids", "input_ids_2")
    ]
    noise = {"name": "noise", "dtype": "float32", "shape": [None, 4, None, None]}
    shapes = {
        "sizes": SIZES,
        "pixels_per_latent": 8,
        "inputs": [*ids, noise],
        "output": {"name": "image", "dtype": "uint8", "shape": [None, None, None, 3]},
    }
    write_manifest(folder, **shapes | changes)
    return folder


def test_a_picture_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    write_open(tmp_path)
    settings = Settings(repository=tmp_path)
    for size in (None, *SIZES):
        generate_file(settings, "a red circle", 7, tmp_path / "a.png", size=size)
        with Image.open(tmp_path / "a.png") as picture:
            assert f"{picture.width}x{picture.height}" == (size or SIZES[0])


def test_the_noise_of_a_size_is_drawn_in_its_shape(tmp_path: Path) -> None:
    write_open(tmp_path)
    model = load_model(tmp_path)
    assert model.noise(0).shape == model.noise(0, "64x64").shape == (4, 8, 8)
    assert model.noise(0, "96x64").shape == (4, 8, 12)
    assert model.noise(0, "64x128").shape == (4, 16, 8)


def test_a_size_that_the_model_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    write_open(tmp_path)
    answer = ask(Settings(repository=tmp_path), {"prompt": "a", "size": "64x96"})
    assert answer.status_code == 422
    assert "has sizes: 64x64, 96x64, 64x128" in answer.text


def test_over_http_a_size_is_a_parameter(tmp_path: Path) -> None:
    write_open(tmp_path)
    model = load_model(tmp_path)
    body = {"prompt": "a", "seed": 1, "size": "96x64"}
    answer = ask(Settings(repository=tmp_path), body, OrtBackend(model, 1, measure_s=0))
    assert Image.open(io.BytesIO(answer.content)).size == (96, 64)


def test_a_batch_holds_pictures_of_one_size_and_no_one_is_overtaken_for_ever() -> None:
    batches: list[list[int]] = []

    def run(rows):
        assert len({row["noise"].shape for row in rows}) == 1
        batches.append([int(row["noise"].flat[0]) for row in rows])
        return [np.zeros((1, 1, 3), np.uint8) for _ in rows]

    async def scenario() -> None:
        batcher = Batcher(run, ServiceTimes({1: 0.01, 2: 0.015}))
        sizes = (8, 12, 8, 8, 12, 16)
        futures = [
            batcher.submit({"noise": np.full((4, 8, width), i)}) for i, width in enumerate(sizes)
        ]
        await asyncio.gather(*futures)
        await batcher.close()

    asyncio.run(scenario())
    assert batches == [[0, 2], [1, 4], [3], [5]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sizes": ["64x64"]}, "must have fixed shapes, but for several sizes"),
        ({"sizes": ["64x64", "60x64"]}, "size 60x64 is no multiple of 8 pixels"),
        ({"sizes": ["64x64", "big"]}, "sizes.1: String should match pattern"),
        (
            {"output": {"name": "image", "dtype": "uint8", "shape": [None, None, None, None]}},
            "must have fixed channels",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RepositoryError, match=sentence):
        read_manifest(write_open(tmp_path, **changes))
