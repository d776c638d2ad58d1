"""Names, profiles and refusal of engines; the GPU; the same build for trtexec."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from export.engine.facts import (
    EngineFacts,
    EngineOptions,
    Here,
    build_command,
    capability_of,
    check_engine,
    check_options,
    engine_advice,
    engine_name,
)
from export.engine.gpu import Gpu, find_gpu, nvidia_gpu_found, parse_gpu
from export.engine.profiles import make_profiles
from export.errors import EngineError
from export.repository.manifest import describe, signature_of
from export.signature import text_to_image

ROOT = Path(__file__).parents[2]
BUCKETS = ((1024, 1024), (1152, 896), (896, 1152))
ONE = text_to_image(4, 8, 64)
MANY = text_to_image(4, 128, 1024, BUCKETS)
HERE = Here("10.16.1.11", "NVIDIA H200", "9.0", "a" * 64)
FACTS = EngineFacts(
    file="model.sm90.plan",
    sha256="b" * 64,
    bytes=1,
    model_sha256="a" * 64,
    gpu="NVIDIA H100",
    capability="9.0",
    driver="570",
    tensorrt="10.16.1.11",
    seconds=1.0,
    host_peak_bytes=1,
    device_memory_bytes=1,
    profiles=(),
    options=EngineOptions(),
)


@pytest.mark.parametrize(
    ("capability", "name"),
    [("9.0", "model.sm90.plan"), ("8.9", "model.sm89.plan"), ("12.0", "model.sm120.plan")],
)
def test_an_engine_is_named_for_its_compute_capability(capability: str, name: str) -> None:
    assert engine_name(capability) == name
    assert capability_of(name) == capability


@pytest.mark.parametrize("name", ["model.plan", "model.sm9.plan", "model.sm90.onnx", "x.sm90.plan"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match=f"{name}' is no engine's name"):
        capability_of(name)
    with pytest.raises(EngineError, match="'ninety' is no version or compute capability"):
        engine_name("ninety")


def test_there_is_one_profile_per_size_the_default_first() -> None:
    profiles = make_profiles(MANY, max_batch=8, opt_batch=4)
    assert [profile.name for profile in profiles] == ["1024x1024", "1152x896", "896x1152"]
    assert profiles[1].shapes == {
        "input_ids": ((1, 77), (4, 77), (8, 77)),
        "input_ids_2": ((1, 77), (4, 77), (8, 77)),
        "noise": ((1, 4, 112, 144), (4, 4, 112, 144), (8, 4, 112, 144)),
    }


def test_a_profile_is_tuned_for_the_largest_batch_unless_told() -> None:
    (profile,) = make_profiles(ONE, max_batch=8)
    assert profile.shapes["noise"] == ((1, 4, 8, 8), (8, 4, 8, 8), (8, 4, 8, 8))
    for wrong in (0, 9):
        with pytest.raises(EngineError, match=f"opt_batch is {wrong}; it must lie between 1 and"):
            make_profiles(ONE, max_batch=8, opt_batch=wrong)


@pytest.mark.parametrize("signature", [ONE, MANY])
def test_a_manifest_gives_the_profiles_of_its_signature(signature) -> None:
    read = signature_of(describe(signature, 8))
    assert make_profiles(read, 8) == make_profiles(signature, 8)


def test_an_engine_in_its_own_place_is_taken() -> None:
    check_engine(FACTS, HERE)


def test_an_engine_of_another_graph_is_refused_with_both_names() -> None:
    with pytest.raises(EngineError, match="graph aaaaaaaaaaaa, but the graph here is cccccccccccc"):
        check_engine(FACTS, replace(HERE, model_sha256="c" * 64))


@pytest.mark.parametrize("version", ["10.16.2.1", "10.15.0.1", "11.4.0.106"])
def test_an_engine_of_another_tensorrt_is_refused_with_both_versions(version: str) -> None:
    with pytest.raises(EngineError, match=rf"TensorRT 10\.16\.1\.11, but TensorRT {version} is"):
        check_engine(FACTS, replace(HERE, tensorrt=version))


def test_a_version_compatible_engine_goes_to_later_versions_only() -> None:
    facts = replace(FACTS, options=EngineOptions(version_compatible=True))
    check_engine(facts, replace(HERE, tensorrt="11.4.0.106"))
    with pytest.raises(EngineError, match=r"but TensorRT 10\.9\.0\.34 is here"):
        check_engine(facts, replace(HERE, tensorrt="10.9.0.34"))


def test_an_engine_of_another_gpu_is_refused_with_both_gpus() -> None:
    other = replace(HERE, gpu="NVIDIA L4", capability="8.9")
    with pytest.raises(EngineError) as caught:
        check_engine(FACTS, other)
    assert "NVIDIA H100 (compute capability 9.0)" in str(caught.value)
    assert "NVIDIA L4 (compute capability 8.9)" in str(caught.value)


def test_an_engine_for_ampere_and_later_goes_to_all_of_them() -> None:
    facts = replace(FACTS, options=EngineOptions(hardware="ampere_plus"))
    for capability in ("8.0", "8.9", "12.0"):
        check_engine(facts, replace(HERE, capability=capability))
    with pytest.raises(EngineError, match=r"compute capability 7\.5"):
        check_engine(facts, replace(HERE, gpu="NVIDIA T4", capability="7.5"))


def test_an_engine_without_weights_is_not_used() -> None:
    with pytest.raises(EngineError, match="holds no weights; refit it"):
        check_engine(replace(FACTS, options=EngineOptions(strip_weights=True)), HERE)


def test_facts_that_are_none_are_refused() -> None:
    value = FACTS.to_json()
    assert EngineFacts.from_json(value) == FACTS
    with pytest.raises(EngineError, match="not the facts of an engine: 'profiles'"):
        EngineFacts.from_json({key: value[key] for key in value if key != "profiles"})
    with pytest.raises(EngineError, match=r"not the facts of an engine: .*colour"):
        EngineFacts.from_json({**value, "colour": "red"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workspace_gib": 0}, "workspace_gib is 0; it must be above 0"),
        ({"workspace_gib": float("nan")}, "workspace_gib is nan; it must be above 0"),
        ({"optimization_level": 6}, "optimization_level is 6; it must lie between 0 and 5"),
        ({"hardware": "hopper"}, "hardware is 'hopper'; allowed are none, ampere_plus, same_"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        check_options(EngineOptions(**options))


def test_the_command_builds_every_batch_of_the_one_size() -> None:
    command = build_command(
        Path("1/model.onnx"), Path("model.plan"), make_profiles(ONE, 8), EngineOptions()
    )
    assert command == (
        "trtexec --onnx=1/model.onnx --saveEngine=model.plan --stronglyTyped --skipInference "
        "--noTF32 "
        "--minShapes=input_ids:1x77,input_ids_2:1x77,noise:1x4x8x8 "
        "--optShapes=input_ids:8x77,input_ids_2:8x77,noise:8x4x8x8 "
        "--maxShapes=input_ids:8x77,input_ids_2:8x77,noise:8x4x8x8"
    )


def test_the_command_has_a_profile_per_size_and_every_option() -> None:
    options = EngineOptions(
        workspace_gib=2.5,
        optimization_level=4,
        tf32=True,
        refit=True,
        strip_weights=True,
        version_compatible=True,
        hardware="ampere_plus",
        timing_cache=Path("a folder/timing.cache"),
    )
    words = shlex.split(
        build_command(Path("m.onnx"), Path("m.plan"), make_profiles(MANY, 2), options)
    )
    assert words[5:12] == [
        "--memPoolSize=workspace:2560M",
        "--builderOptimizationLevel=4",
        "--hardwareCompatibilityLevel=ampere+",
        "--timingCacheFile=a folder/timing.cache",
        "--refit",
        "--stripWeights",
        "--versionCompatible",
    ]
    assert [word for word in words if "profile" in word] == [f"--profile={i}" for i in range(3)]
    assert "--maxShapes=input_ids:2x77,input_ids_2:2x77,noise:2x4x144x112" in words


def test_the_advice_says_whether_there_is_a_gpu_and_what_to_do() -> None:
    with_gpu = engine_advice(Path("shapes/1"), ONE, 8, gpu=True)
    assert with_gpu.startswith("an NVIDIA GPU was found; no TensorRT engine was built.")
    without = engine_advice(Path("shapes/1"), ONE, 8, gpu=False)
    assert without.startswith("no NVIDIA GPU was found; no TensorRT engine was built.")
    assert "on the machine that will serve: distill engine, or trtexec --onnx=shapes/1/" in without


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that puts an `nvidia-smi` of two lines of shell in place."""

    def put(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


def test_no_gpu_is_one_sentence(tool) -> None:
    assert not nvidia_gpu_found()
    with pytest.raises(EngineError, match="no NVIDIA GPU was found"):
        find_gpu()


def test_the_gpu_is_the_one_that_cuda_sees_first(tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool('[ "$3" = --id=2 ] && echo "NVIDIA L4, 570.86.15, 8.9, 23034"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert nvidia_gpu_found()
    assert find_gpu() == Gpu("NVIDIA L4", "570.86.15", "8.9", 23034 << 20)


def test_a_driver_that_finds_no_gpu_is_quoted(tool) -> None:
    tool("echo No devices were found; exit 6")
    with pytest.raises(EngineError, match="nvidia-smi finds no GPU 0: No devices were found"):
        find_gpu()
    tool("exit 9")
    with pytest.raises(EngineError, match="nvidia-smi finds no GPU 0: exit 9"):
        find_gpu()


def test_a_tool_that_does_not_run_is_named(tool, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with pytest.raises(EngineError, match="nvidia-smi cannot tell the GPU"):
        find_gpu()


@pytest.mark.parametrize("line", ["", "NVIDIA L4, 570, 8.9", "NVIDIA L4, 570, 8.9, [N/A]"])
def test_an_answer_of_another_kind_is_refused(line: str) -> None:
    with pytest.raises(EngineError, match="expected are name,driver_version"):
        parse_gpu(line)


def test_the_container_builds_from_what_is_there() -> None:
    folder = ROOT / "deploy" / "tensorrt"
    (service,) = yaml.safe_load((folder / "docker-compose.yml").read_text("utf-8"))[
        "services"
    ].values()
    assert (folder / service["build"]["context"]).resolve() == ROOT
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text("utf-8")
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    kept = (folder / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert {f"!{name}" for name in names} == {line for line in kept if line.startswith("!")}
    assert all((ROOT / name).exists() for name in names)
    assert service["volumes"][0].endswith(":/models")
    assert '"engine", "/models"]' in dockerfile
