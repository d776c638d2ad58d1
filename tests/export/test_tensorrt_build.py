"""Building an engine, with everything that can go wrong, on a stand-in for TensorRT."""

import json
import resource
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorrt_fake import FakeTensorrt
from tensorrt_graph import write_graph

from export.engine.build import build_engine, build_for_version
from export.engine.facts import EngineFacts, EngineOptions, onnx_digest
from export.engine.gpu import Gpu
from export.engine.profiles import Profile, make_profiles
from export.errors import EngineError
from export.repository.manifest import complete, describe, sha256_of, write_manifest
from export.signature import text_to_image

GPU = Gpu("NVIDIA H100 80GB HBM3", "570.86.15", "9.0", 80 << 30)
PROFILES = make_profiles(text_to_image(4, 8, 64), max_batch=4)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx")


def build(graph: Path, trt: FakeTensorrt, report=lambda line: None, **options) -> EngineFacts:
    plan = graph.with_name("model.sm90.plan")
    return build_engine(graph, plan, PROFILES, EngineOptions(**options), report, trt, GPU)


def refusal(graph: Path, trt: FakeTensorrt, **options) -> str:
    """What is said when nothing is built; and nothing is left behind."""
    before = set(graph.parent.iterdir())
    with pytest.raises(EngineError) as caught:
        build(graph, trt, **options)
    assert set(graph.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("version", ["10.8", "10.16", "11.4"])
def test_the_facts_of_an_engine_are_those_of_its_file_and_its_makers(
    graph: Path, version: str
) -> None:
    trt = FakeTensorrt(version)
    facts = build(graph, trt)
    plan = graph.with_name(facts.file)
    assert (facts.sha256, facts.bytes) == (sha256_of(plan), plan.stat().st_size)
    assert (facts.gpu, facts.driver, facts.capability) == (GPU.name, GPU.driver, "9.0")
    assert facts.tensorrt == trt.__version__
    assert facts.model_sha256 == onnx_digest(graph)
    assert facts.host_peak_bytes > 1 << 20
    assert facts.device_memory_bytes == 123_456
    assert EngineFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_networks_are_strongly_typed_in_every_version(graph: Path) -> None:
    for version in ("10.8", "10.16", "11.4"):
        trt = FakeTensorrt(version)
        build(graph, trt)
        assert trt.network_flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    trt.NetworkDefinitionCreationFlag = object  # once there is no other kind
    build(graph, trt)
    assert trt.network_flags == 0


def test_every_option_reaches_the_config(graph: Path) -> None:
    trt = FakeTensorrt("11.4")
    build(
        graph,
        trt,
        workspace_gib=4,
        tf32=True,
        optimization_level=5,
        hardware="same_compute_capability",
        refit=True,
        strip_weights=True,
        version_compatible=True,
    )
    config = trt.config
    assert config.pools == {"WORKSPACE": 4 << 30}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"
    assert config.flags == ["TF32", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE"]
    assert [profile.shapes["noise"] for profile in config.profiles] == [
        [(1, 4, 8, 8), (4, 4, 8, 8), (4, 4, 8, 8)]
    ]


def test_weights_that_are_stripped_without_refit_come_back_only_as_they_were(graph: Path) -> None:
    trt = FakeTensorrt("10.16")
    build(graph, trt, strip_weights=True)
    assert trt.config.flags == ["REFIT_IDENTICAL", "STRIP_PLAN"]


def test_nothing_is_set_that_was_not_asked_for(graph: Path) -> None:
    trt = FakeTensorrt("11.4")
    build(graph, trt)
    assert (trt.config.flags, trt.config.pools) == ([], {})
    assert trt.config.hardware_compatibility_level is None


def test_weights_beside_the_graph_are_found_and_are_part_of_its_digest(tmp_path: Path) -> None:
    first = write_graph(tmp_path / "model.onnx", beside=True)
    digest = build(first, FakeTensorrt()).model_sha256
    data = tmp_path / "model.onnx.data"
    assert data.stat().st_size > 0
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert onnx_digest(first) != digest


def test_progress_and_warnings_are_told_once(graph: Path) -> None:
    lines: list[str] = []
    build(graph, FakeTensorrt(), lines.append)
    assert lines[0] == "building model.sm90.plan with TensorRT 11.4.0.106 for " + GPU.name
    assert lines[1] == "TensorRT warns: a tensor is not used"
    assert lines[2:11] == [f"TensorRT: Build, {percent} %" for percent in range(10, 100, 10)]
    assert lines[11] == "TensorRT: Build, done"
    assert lines[12].startswith("built model.sm90.plan, ")
    assert len(lines) == 13


def test_an_interrupt_stops_the_build_and_leaves_nothing(graph: Path) -> None:
    def report(line: str) -> None:
        if line.endswith("30 %"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(graph, FakeTensorrt(), report)
    assert [file.name for file in graph.parent.iterdir()] == ["model.onnx"]


def test_the_timing_cache_is_kept_for_the_next_build(graph: Path) -> None:
    cache, trt = graph.with_name("timing.cache"), FakeTensorrt()
    build(graph, trt, timing_cache=cache)
    assert cache.read_bytes() == trt.measured
    lines: list[str] = []
    build(graph, trt, lines.append, timing_cache=cache)
    assert trt.config.cache.content == trt.measured
    assert not any("timing cache" in line for line in lines)


def test_another_machine_s_timing_cache_is_begun_anew(graph: Path) -> None:
    cache, trt, lines = graph.with_name("timing.cache"), FakeTensorrt(), []
    cache.write_bytes(b"of another GPU")
    build(graph, trt, lines.append, timing_cache=cache)
    assert f"the timing cache {cache} is another GPU's or TensorRT's; a new one is begun" in lines
    assert cache.read_bytes() == trt.measured


def test_a_timing_cache_that_cannot_be_kept_does_not_spoil_the_engine(graph: Path) -> None:
    cache, lines = graph.parent / "missing" / "timing.cache", []
    assert build(graph, FakeTensorrt(), lines.append, timing_cache=cache).bytes > 0
    assert any(line.startswith("the next build will take as long: ") for line in lines)


def test_every_parser_error_is_told_with_its_node(graph: Path) -> None:
    assert refusal(graph, FakeTensorrt(fails="parser")) == (
        f"TensorRT 11.4.0.106 cannot take {graph}: node 'warp_1' (Warp, number 3): no importer "
        f"for Warp [UNSUPPORTED_NODE]; node 'loop_7' (Loop, number 12): static input expected "
        f"[UNSUPPORTED_NODE_DYNAMIC]"
    )


def test_a_graph_cut_short_is_refused(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-200])
    said = refusal(graph, FakeTensorrt())
    assert f"cannot take {graph}: no ONNX model" in said
    assert said.endswith("[MODEL_DESERIALIZE_FAILED]")


def test_a_graph_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.onnx", FakeTensorrt()) == (
        f"the graph {tmp_path / 'a.onnx'} does not exist"
    )


def test_a_builder_that_gives_nothing_says_why(graph: Path) -> None:
    assert refusal(graph, FakeTensorrt(fails="nothing")) == (
        "TensorRT 11.4.0.106 built nothing for model.sm90.plan: no implementation for node mix"
    )


def test_too_little_memory_is_said_with_what_to_try(graph: Path) -> None:
    said = refusal(graph, FakeTensorrt(fails="memory"))
    assert said.startswith(f"{GPU.name} (80.0 GiB) has too little memory to build model.sm90.plan")
    for way in ("max_batch", "fewer sizes", "workspace_gib", "CUDA out of memory"):
        assert way in said


def test_a_driver_that_does_not_start_is_told_in_tensorrt_s_words(graph: Path) -> None:
    assert refusal(graph, FakeTensorrt(fails="driver")) == (
        "TensorRT 11.4.0.106 does not start on this machine's GPU: "
        "CUDA initialization failure with error: 35"
    )


def test_a_plan_that_does_not_open_is_not_kept(graph: Path) -> None:
    said = refusal(graph, FakeTensorrt(fails="open"))
    assert "does not open" in said
    assert said.endswith("the plan is damaged")


def test_shapes_and_profiles_that_tensorrt_refuses_are_named(graph: Path) -> None:
    said = refusal(graph, FakeTensorrt(fails="shape"))
    assert said == (
        "TensorRT refuses the shapes (1, 77), (4, 77), (4, 77) of input_ids in the profile 64x64: "
        "inconsistent dimensions"
    )
    assert "refuses the profile 64x64" in refusal(graph, FakeTensorrt(fails="profile"))


def test_profiles_for_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", noise="latent")
    assert refusal(graph, FakeTensorrt()) == (
        f"{graph} has the inputs input_ids, input_ids_2, latent; the profile 64x64 is for "
        f"input_ids, input_ids_2, noise"
    )


def test_a_full_disk_leaves_nothing_half_written(graph: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        said = refusal(graph, FakeTensorrt())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written: File too large; nothing of it was left behind" in said


def test_an_option_that_an_old_tensorrt_lacks_is_refused_by_name(graph: Path) -> None:
    said = refusal(graph, FakeTensorrt("10.8"), hardware="same_compute_capability")
    assert said == (
        "TensorRT 10.8.0.43 has no HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY, which "
        "hardware same_compute_capability needs; leave hardware same_compute_capability out or "
        "take a newer TensorRT"
    )


def test_more_workspace_than_the_gpu_has_is_refused(graph: Path) -> None:
    said = refusal(graph, FakeTensorrt(), workspace_gib=81)
    assert said == f"workspace_gib is 81; {GPU.name} has 80.0 GiB"


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_it_is_said_how_to_install_it(graph: Path) -> None:
    with pytest.raises(EngineError, match="pip install tensorrt-cu13") as caught:
        build_engine(graph, graph.with_name("a.plan"), PROFILES, EngineOptions(), gpu=GPU)
    assert "tensorrt-cu12" in str(caught.value)


def version_folder(model: Path, sizes=()) -> Path:
    """A published version: manifest and a small graph."""
    folder = model / "1"
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx")
    signature = text_to_image(4, 8, 64, sizes)
    write_manifest(complete(describe(signature, 4), folder, model.name, 1), folder)
    return folder


def test_the_engine_of_a_version_follows_its_manifest(tmp_path: Path) -> None:
    version = version_folder(tmp_path / "small", sizes=((64, 64), (96, 64)))
    plan, facts = build_for_version(
        version, tmp_path, opt_batch=2, report=[].append, trt=FakeTensorrt(), gpu=GPU
    )
    assert plan == tmp_path / "model.sm90.plan"
    assert [profile.name for profile in facts.profiles] == ["64x64", "96x64"]
    assert facts.profiles[1].shapes["noise"] == ((1, 4, 8, 12), (2, 4, 8, 12), (4, 4, 8, 12))
    assert (tmp_path / "small" / "timing.sm90.cache").is_file()
    assert sorted(file.name for file in version.iterdir()) == ["manifest.json", "model.onnx"]


def test_facts_keep_what_was_asked_but_not_where_the_cache_lies(graph: Path) -> None:
    facts = build(graph, FakeTensorrt(), refit=True, timing_cache=graph.with_name("c"))
    assert facts.to_json()["options"] == {
        "tf32": False,
        "refit": True,
        "strip_weights": False,
        "version_compatible": False,
        "hardware": "none",
    }
    options = replace(facts.options, timing_cache=None)
    assert EngineFacts.from_json(facts.to_json()) == replace(facts, options=options)
    assert Profile.from_json(facts.to_json()["profiles"][0]) == PROFILES[0]
