"""Asking for a GPU: the options, and one sentence for each thing that can be missing."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu, FakeSession
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from test_several_sizes import SIZES, write_open

from serve.backend_ort import OrtBackend
from serve.errors import RepositoryError, SettingsError
from serve.model import load_model
from serve.providers import Device, cuda_options, engine_folder, profile_shapes, providers_of
from serve.session import open_session
from serve.settings import Settings

NO_CAPTURE = "This session cannot use the graph capture feature as requested by the user"
NO_GPU = RuntimeError("cuda_call.cc:154 CUDA failure 100: no CUDA-capable device ; GPU=-1 ; line=3")


@pytest.fixture
def gpu(monkeypatch):
    """Puts a FakeGpu in onnxruntime's place."""

    def installed(**options) -> FakeGpu:
        made = FakeGpu(**options)
        monkeypatch.setattr("serve.session.onnxruntime", made)
        monkeypatch.setattr("serve.device_buffers.onnxruntime", made)
        return made

    return installed


def refused(model, device: Device) -> str:
    with pytest.raises(SettingsError) as caught:
        open_session(model, 1, device)
    return str(caught.value)


def rows(model, count: int, size: str | None = None):
    ids = model.tokenize("a red circle")
    return [{**ids, "noise": model.noise(seed, size)} for seed in range(count)]


def test_the_settings_name_the_device():
    settings = Settings(provider="tensorrt", gpu=3, engine_cache=Path("engines"))
    assert Device.of(settings) == Device("tensorrt", 3, Path("engines"))
    assert Device.of(Settings()) == Device("cpu", 0, None)


def test_this_package_has_no_gpu_and_the_sentence_says_what_to_install(model):
    said = refused(model, Device("cuda"))
    assert said.startswith("provider is 'cuda', but onnxruntime 1.")
    assert said.endswith("install onnxruntime-gpu in place of onnxruntime")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_whose_library_does_not_load_is_named_with_what_it_lacks(
    model, gpu, tmp_path, provider
):
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / f"libonnxruntime_providers_{provider}.so").write_bytes(b"no library")
    gpu(absent=True, folder=tmp_path)
    said = refused(model, Device(provider, 0, tmp_path))
    assert said.startswith(f"provider is '{provider}', whose library does not load: ")
    assert "file too short" in said or "invalid ELF" in said
    assert "it needs" in said


def test_a_machine_without_a_driver_is_told_so(model, gpu, monkeypatch):
    gpu(absent=True)
    missing = "libcuda.so.1: cannot open shared object file"
    monkeypatch.setattr("serve.session._missing_library", lambda provider: missing)
    expected = f"provider is 'cuda', but there is no NVIDIA driver here: {missing}"
    assert refused(model, Device("cuda")) == expected


def test_a_machine_without_that_gpu_is_told_so(model, gpu):
    gpu(fails=[NO_GPU])
    said = refused(model, Device("cuda", 7))
    assert said == (
        "provider is 'cuda' and gpu 7, which cannot be used: "
        "CUDA failure 100: no CUDA-capable device"
    )


def test_a_provider_that_is_left_out_in_silence_is_an_error(model, gpu):
    gpu(absent=True)
    assert refused(model, Device("cuda")).endswith("cannot be used: it was left out without a word")


def test_heavy_operators_that_would_run_on_the_cpu_are_refused(model, gpu):
    gpu(on_cpu=("Conv", "Concat"))
    with pytest.raises(RepositoryError, match=r"cuda leaves operators of .* to the CPU: Conv$"):
        open_session(model, 1, Device("cuda"))


def test_light_operators_may_run_on_the_cpu_and_are_logged(model, gpu, caplog):
    caplog.set_level(logging.INFO)
    gpu(on_cpu=("Concat", "Gather"))
    open_session(model, 1, Device("cuda"))
    assert "cpu: 3 operators" in caplog.text
    assert "(Concat, Gather)" in caplog.text


def test_a_package_that_cannot_prove_where_it_runs_is_too_old(model, gpu, monkeypatch):
    gpu()
    monkeypatch.delattr(FakeSession, "get_provider_graph_assignment_info")
    assert refused(model, Device("cuda")) == (
        "onnxruntime-gpu 1.31.1 cannot say what runs on the GPU: a later one is needed"
    )


def test_a_graph_of_which_the_gpu_runs_nothing_is_refused(model, gpu):
    class Everything:
        def __contains__(self, name):
            return True

    gpu(on_cpu=Everything())
    with pytest.raises(RepositoryError, match="cuda can run no operator of"):
        open_session(model, 1, Device("cuda"))


def test_a_graph_that_cannot_be_recorded_runs_without_and_the_log_says_so(model, gpu, caplog):
    fake = gpu(fails=[Fail(f"{NO_CAPTURE} as the model has control flow nodes")])
    open_session(model, 1, Device("cuda"))
    recorded = [one["CUDAExecutionProvider"]["enable_cuda_graph"] for one in fake.opened]
    assert recorded == ["1", "0"]
    assert "tiny/1 runs without CUDA graphs" in caplog.text


def test_a_broken_graph_is_no_fault_of_the_device(model, gpu):
    gpu(fails=[Fail("Load model failed: no such operator")])
    with pytest.raises(RepositoryError, match=r"cannot load .*: Load model failed"):
        open_session(model, 1, Device("cuda"))


def test_pictures_are_drawn_in_buffers_on_the_device_with_one_recording_a_shape(model, gpu):
    alone = OrtBackend(model, 1, measure_s=0)
    asyncio.run(alone.start())
    expected = alone.run(rows(model, 3))
    fake = gpu()
    backend = OrtBackend(model, 1, measure_s=0, device=Device("cuda", 2))
    asyncio.run(backend.start())
    drawn = [backend.run(rows(model, count)) for count in (1, 3, 1, 3, 2)]
    assert fake.preloaded
    assert fake.runs == [("1", 1), ("2", 3), ("1", 1), ("2", 3), ("3", 2)]
    assert fake.buffers == [("cuda", 2)] * 3 * 4  # three inputs and a picture, of three shapes
    for pictures in drawn:  # a later call has not written into the pictures of an earlier one
        assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=False))


def test_every_size_and_batch_is_recorded_before_anybody_waits_for_it(tmp_path, gpu):
    write_open(tmp_path, max_batch=2)
    model, fake = load_model(tmp_path), gpu()

    async def scenario():
        backend = OrtBackend(model, 1, measure_s=0.5, device=Device("cuda"))
        await backend.start()
        known = len(fake.buffers)
        drawn = [backend.infer(row) for size in SIZES for row in rows(model, 2, size)]
        await asyncio.gather(*drawn)
        await backend.close()
        return known

    assert asyncio.run(scenario()) == len(fake.buffers) >= 3 * 4


def test_tensorrt_gets_the_shapes_of_the_manifest_and_falls_through_to_cuda(model, tmp_path):
    named = providers_of(model.manifest, Device("tensorrt", 1, tmp_path))
    assert [name for name, _ in named] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    options = named[0][1]
    assert options["device_id"] == named[1][1]["device_id"] == "1"
    assert options["trt_engine_cache_path"] == str(tmp_path / model.manifest.digest)
    assert named[1][1]["enable_cuda_graph"] == "0"  # TensorRT records its own
    assert profile_shapes(model.manifest) == (
        "input_ids:1x77,input_ids_2:1x77,noise:1x4x8x8",
        "input_ids:1x77,input_ids_2:1x77,noise:1x4x8x8",
        "input_ids:8x77,input_ids_2:8x77,noise:8x4x8x8",
    )


def test_profiles_span_the_smallest_and_the_largest_of_several_sizes(tmp_path):
    write_open(tmp_path, sizes=["64x64", "128x32"])
    shapes = [part.rpartition(":")[2] for part in profile_shapes(load_model(tmp_path).manifest)]
    assert shapes == ["1x4x4x8", "1x4x8x8", "8x4x8x16"]


def test_cuda_is_asked_for_pictures_that_repeat():
    options = cuda_options(0, graphs=True)
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_engines_lie_in_the_users_cache_unless_a_folder_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert engine_folder(Device("tensorrt"), "ab") == (
        tmp_path / "cache" / "singlepass" / "tensorrt" / "ab"
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = engine_folder(Device("tensorrt"), "ab")
    assert made == tmp_path / "home" / ".cache" / "singlepass" / "tensorrt" / "ab"
    assert made.is_dir()


def test_a_folder_of_engines_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"engine_cache is .*file: .* kept in .*: Not"):
        engine_folder(Device("tensorrt", 0, tmp_path / "file"), "ab")
