"""Other weights in the same engine, on a stand-in for TensorRT."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorrt_fake import FakeTensorrt
from tensorrt_fake_engine import Stream
from tensorrt_graph import write_graph

from export.engine.build import build_engine
from export.engine.facts import EngineFacts, EngineOptions, onnx_digest
from export.engine.gpu import Gpu
from export.engine.profiles import make_profiles
from export.engine.refit import refit_engine
from export.engine.runtime import open_engine
from export.errors import EngineError
from export.gate.session import open_session
from export.repository.manifest import sha256_of
from export.signature import text_to_image

GPU = Gpu("NVIDIA H100", "570", "9.0", 80 << 30)
PROFILES = make_profiles(text_to_image(4, 8, 64), max_batch=2)
FEEDS = {
    "input_ids": np.arange(154, dtype=np.int64).reshape(2, 77),
    "input_ids_2": np.zeros((2, 77), np.int64),
    "noise": np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32),
}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "first.onnx", scale=20)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another student of the same shape."""
    return write_graph(tmp_path / "second.onnx", scale=60)


def build(graph: Path, trt: FakeTensorrt, **options) -> tuple[Path, EngineFacts]:
    plan = graph.with_name("old.plan")
    built = build_engine(graph, plan, PROFILES, EngineOptions(**options), [].append, trt, GPU)
    return plan, built


def refit(built: tuple[Path, EngineFacts], graph: Path, trt: FakeTensorrt) -> EngineFacts:
    return refit_engine(*built, graph, graph.with_name("new.plan"), [].append, trt)


def draw(plan: Path, trt: FakeTensorrt) -> np.ndarray:
    return open_engine(plan, trt=trt, stream=Stream())(FEEDS)


@pytest.mark.parametrize("version", ["10.8", "11.4"])
def test_a_refitted_engine_draws_what_the_other_graph_draws(
    first: Path, second: Path, version: str
) -> None:
    trt = FakeTensorrt(version)
    built = build(first, trt, refit=True)
    facts = refit(built, second, trt)
    pictures = draw(second.with_name("new.plan"), trt)
    assert (pictures == open_session(second)(FEEDS)).all()
    assert (pictures != draw(built[0], trt)).mean() > 0.1
    assert facts.model_sha256 == onnx_digest(second)
    assert (facts.file, facts.sha256) == ("new.plan", sha256_of(second.with_name("new.plan")))


def test_a_stripped_engine_draws_again_once_its_weights_are_back(first: Path) -> None:
    trt = FakeTensorrt()
    built = build(first, trt, strip_weights=True)
    with pytest.raises(EngineError, match="refuses the call"):
        draw(built[0], trt)
    facts = refit(built, first, trt)
    assert not facts.options.strip_weights
    assert (draw(first.with_name("new.plan"), trt) == open_session(first)(FEEDS)).all()


def test_weights_are_written_out_and_the_engine_stays_refittable(first: Path, second: Path) -> None:
    trt = FakeTensorrt("11.4")
    refit(build(first, trt, refit=True), second, trt)
    assert trt.serialization.cleared == ["EXCLUDE_WEIGHTS"]
    assert trt.serialization.set == ["INCLUDE_REFIT"]
    old = FakeTensorrt("10.8")  # has no such flag
    refit(build(first, old, refit=True), second, old)
    assert old.serialization.set == []


def test_other_weights_in_an_engine_stripped_without_refit_are_refused(
    first: Path, second: Path
) -> None:
    trt = FakeTensorrt()
    built = build(first, trt, strip_weights=True)
    with pytest.raises(EngineError, match="takes back only those, not"):
        refit(built, second, trt)


def test_an_engine_built_without_refit_is_refused(first: Path, second: Path) -> None:
    trt = FakeTensorrt()
    plan, facts = build(first, trt)
    with pytest.raises(EngineError, match="was built without refit; build it again with refit"):
        refit((plan, facts), second, trt)
    claimed = replace(facts, options=EngineOptions(refit=True))
    with pytest.raises(EngineError, match="takes no other weights; build it again with refit"):
        refit((plan, claimed), second, trt)


def test_weights_of_another_shape_are_refused_with_the_node(first: Path, tmp_path: Path) -> None:
    trt = FakeTensorrt()
    built = build(first, trt, refit=True)
    other = write_graph(tmp_path / "other.onnx", channels=8)
    with pytest.raises(EngineError) as caught:
        refit(built, other, trt)
    assert str(caught.value) == (
        f"the weights of {other} do not fit: node 'mix' (Conv, number 0): weight differs "
        f"[REFIT_FAILED]"
    )


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("missing", "has no weights for weight, sizes, axes, low, high and 1 more"),
        ("refit", r"refuses the weights of .*second.onnx: TensorRT gave no reason"),
        ("serialize", r"does not serialize .*old.plan: TensorRT gave no reason"),
    ],
)
def test_every_other_failure_is_one_sentence_and_writes_nothing(
    first: Path, second: Path, fails: str, said: str
) -> None:
    trt = FakeTensorrt()
    built = build(first, trt, refit=True)
    trt.fails = fails
    with pytest.raises(EngineError, match=said):
        refit(built, second, trt)
    assert not second.with_name("new.plan").exists()
