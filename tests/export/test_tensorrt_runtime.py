"""An engine as a function, on a stand-in for TensorRT that reads and writes real addresses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorrt_fake import FakeTensorrt
from tensorrt_fake_engine import Stream
from tensorrt_graph import write_graph

from export.engine.build import build_engine
from export.engine.facts import EngineOptions
from export.engine.gpu import Gpu
from export.engine.profiles import make_profiles
from export.engine.runtime import open_engine
from export.errors import EngineError
from export.gate.session import open_session
from export.signature import text_to_image

GPU = Gpu("NVIDIA H100", "570", "9.0", 80 << 30)
SIZES = ((64, 64), (96, 64))


def build(folder: Path, trt: FakeTensorrt, **options) -> Path:
    graph = write_graph(folder / "model.onnx")
    profiles = make_profiles(text_to_image(4, 8, 64, SIZES), max_batch=3)
    plan = folder / "model.sm90.plan"
    build_engine(graph, plan, profiles, EngineOptions(**options), [].append, trt, GPU)
    return plan


def feeds(batch: int, width: int = 8) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch)
    return {
        "input_ids": random.integers(0, 60, (batch, 77)),
        "input_ids_2": random.integers(0, 60, (batch, 77)),
        "noise": random.standard_normal((batch, 4, 8, width), np.float32),
    }


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("width", [8, 12])
def test_an_engine_draws_every_batch_of_every_size(tmp_path: Path, batch: int, width: int) -> None:
    trt, stream = FakeTensorrt(), Stream()
    infer = open_engine(build(tmp_path, trt), trt=trt, stream=stream)
    given = feeds(batch, width)
    pictures = infer(given)
    assert (pictures.shape, pictures.dtype) == ((batch, 64, 8 * width, 3), np.uint8)
    assert (pictures == open_session(tmp_path / "model.onnx")(given)).all()
    assert stream.synchronized == 1


def test_inputs_need_not_lie_in_one_piece(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    infer = open_engine(build(tmp_path, trt), trt=trt, stream=Stream())
    given = feeds(3)
    turned = {name: np.asfortranarray(array) for name, array in given.items()}
    assert (infer(turned) == infer(given)).all()


def test_a_shape_that_no_profile_takes_is_refused_with_what_is_taken(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    infer = open_engine(build(tmp_path, trt), trt=trt, stream=Stream())
    with pytest.raises(EngineError) as caught:
        infer(feeds(4))
    said = str(caught.value)
    assert "does not take input_ids (4, 77)" in said
    assert "noise (1, 4, 8, 8) to (3, 4, 8, 8) or " in said
    assert said.endswith("noise (1, 4, 8, 12) to (3, 4, 8, 12)")
    with pytest.raises(EngineError, match=r"does not take .* noise \(1, 4\)"):
        infer({**feeds(1), "noise": np.zeros((1, 4), np.float32)})


def test_a_missing_input_and_another_type_are_named(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    infer = open_engine(build(tmp_path, trt), trt=trt, stream=Stream())
    given = feeds(1)
    with pytest.raises(EngineError, match="input noise is missing; given are input_ids, input_"):
        infer({name: given[name] for name in ("input_ids", "input_ids_2")})
    with pytest.raises(EngineError, match=r"noise is torch\.float64; the engine takes torch\.floa"):
        infer({**given, "noise": given["noise"].astype(np.float64)})


def test_a_type_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    plan = build(tmp_path, trt)
    infer = open_engine(plan, trt=trt, stream=Stream())
    trt.DataType = {"FLOAT": trt.DataType.BF16, "INT64": trt.DataType.INT64}
    with pytest.raises(EngineError, match="the engine's noise is BF16; known are FLOAT, INT32"):
        infer(feeds(1))


def test_a_call_that_tensorrt_refuses_is_told(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    infer = open_engine(build(tmp_path, trt), trt=trt, stream=Stream())
    trt.fails = "call"
    with pytest.raises(EngineError, match="TensorRT refuses the call: TensorRT gave no reason"):
        infer(feeds(1))


def test_a_plan_that_does_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    plan = build(tmp_path, trt)
    trt.fails = "context"
    with pytest.raises(EngineError, match=f"there is no memory to run {plan}"):
        open_engine(plan, trt=trt, stream=Stream())


def test_a_plan_cut_short_or_missing_is_refused(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    plan = build(tmp_path, trt)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"does not open .*; it may be cut short, .*damaged"):
        open_engine(plan, trt=trt, stream=Stream())
    with pytest.raises(EngineError, match=r"no\.plan cannot be read: No such file"):
        open_engine(tmp_path / "no.plan", trt=trt, stream=Stream())


def test_another_version_s_plan_opens_only_if_it_brings_its_runtime(tmp_path: Path) -> None:
    plan = build(tmp_path, FakeTensorrt("10.16"), version_compatible=True)
    newer = FakeTensorrt("11.4")
    with pytest.raises(EngineError, match=r"does not open .*built with 10\.16"):
        open_engine(plan, trt=newer, stream=Stream())
    infer = open_engine(plan, host_code=True, trt=newer, stream=Stream())
    assert infer(feeds(1)).shape == (1, 64, 64, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_so(tmp_path: Path) -> None:
    trt = FakeTensorrt()
    with pytest.raises(EngineError, match="torch finds no CUDA GPU"):
        open_engine(build(tmp_path, trt), trt=trt)
