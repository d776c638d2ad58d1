"""The `model.py` of the Python back end, against a stand-in for the module that Triton gives it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format

from export.repository.triton_config import PYTHON_MODEL, ServingOptions, parse, triton_config
from export.signature import text_to_image

SHIPPED = Path(__file__).parents[2] / "model_repository" / "shapes" / "1"
SHAPES = {"input_ids": (77,), "input_ids_2": (77,), "noise": (4, 8, 8)}


class RefusedError(Exception):
    """Triton's own, by name."""


@pytest.fixture
def model_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file, loaded as Triton loads it: beside nothing of ours."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.Tensor = lambda name, array: SimpleNamespace(name=name, array=array)
    stand_in.InferenceResponse = lambda tensors: SimpleNamespace(tensors=tensors)
    stand_in.get_input_tensor_by_name = lambda request, name: SimpleNamespace(
        as_numpy=lambda: request[name]
    )
    stand_in.TritonModelException = RefusedError
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    spec = importlib.util.spec_from_file_location("model", PYTHON_MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(kind: str = "CPU") -> dict[str, str]:
    """What Triton hands to `initialize`: its config as JSON, and where the version lies."""
    options = ServingOptions(threads=1, gpu=kind == "GPU")
    text = triton_config("shapes", text_to_image(4, 8, 64), 8, "python", options)
    config = json_format.MessageToDict(parse(text), preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(config),
        "model_repository": str(SHIPPED.parent),
        "model_version": SHIPPED.name,
        "model_instance_kind": kind,
        "model_instance_device_id": "0",
    }


def request(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {name: np.zeros((rows, *shape), np.int64) for name, shape in SHAPES.items()}
    return {**made, "noise": random.standard_normal((rows, *SHAPES["noise"]), np.float32)}


def test_requests_run_as_one_batch_and_each_gets_its_own_rows(model_py: ModuleType) -> None:
    model = model_py.TritonPythonModel()
    model.initialize(arguments())
    requests = [request(rows, seed) for seed, rows in enumerate((1, 3, 2))]
    responses = model.execute(requests)
    session = onnxruntime.InferenceSession(SHIPPED / "model.onnx")
    for feeds, response in zip(requests, responses, strict=True):
        (tensor,) = response.tensors
        assert (tensor.name, tensor.array.flags.c_contiguous) == ("image", True)
        np.testing.assert_array_equal(tensor.array, session.run(["image"], feeds)[0])


def test_a_gpu_that_onnx_runtime_cannot_use_is_said_not_replaced(
    model_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cpu])
    with pytest.raises(RefusedError, match="has KIND_GPU, but this onnxruntime has no CUDA"):
        model_py.TritonPythonModel().initialize(arguments("GPU"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    given = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, providers: given.append(providers)
    )
    model_py.TritonPythonModel().initialize(arguments("GPU"))
    assert given == [[(cuda, {"device_id": 0})]]
