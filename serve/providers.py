"""What ONNX Runtime runs a graph on, and with which options: nothing is opened here.

On a GPU the options are chosen so that equal inputs give equal pictures: no TF32, which rounds
float32 to 10 bits; convolutions chosen by rule and not by racing them; deterministic kernels.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from serve.errors import SettingsError
from serve.manifest import Manifest
from serve.settings import Settings

Provider = Literal["cpu", "cuda", "tensorrt"]
Options = dict[str, str]

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# An operator that one cannot run is left to the next.
PRECEDENCE: dict[Provider, tuple[Provider, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
}


class Device(NamedTuple):
    """Which provider runs the model, on which GPU; TensorRT keeps the engines that it builds."""

    provider: Provider = "cpu"
    gpu: int = 0
    engine_cache: Path | None = None  # None: the user's cache folder

    @classmethod
    def of(cls, settings: Settings) -> "Device":
        """The device that the settings name."""
        return cls(settings.provider, settings.gpu, settings.engine_cache)

    @property
    def memory(self) -> tuple[str, int]:
        """Where its buffers lie, in ONNX Runtime's words."""
        return ("cpu", 0) if self.provider == "cpu" else ("cuda", self.gpu)


def providers_of(
    manifest: Manifest, device: Device, graphs: bool = True
) -> list[tuple[str, Options]]:
    """ONNX Runtime's `providers`, in order of preference; `graphs`: capture CUDA graphs.

    For TensorRT the folder of the engines is made; raises SettingsError where it cannot be.
    """
    options: dict[Provider, Options] = {"cpu": {}}
    if device.provider != "cpu":
        captured = graphs and device.provider == "cuda"
        options["cuda"] = cuda_options(device.gpu, captured)
    if device.provider == "tensorrt":
        folder = engine_folder(device, manifest.digest)
        options["tensorrt"] = tensorrt_options(manifest, device.gpu, folder, graphs)
    return [(NAMES[name], options[name]) for name in PRECEDENCE[device.provider]]


def cuda_options(gpu: int, graphs: bool) -> Options:
    """Options of the CUDA provider."""
    return {
        "device_id": str(gpu),
        "enable_cuda_graph": str(int(graphs)),
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE races them: other bits each start
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",  # shapes are few: no doubling of what is held
    }


def tensorrt_options(manifest: Manifest, gpu: int, folder: Path, graphs: bool) -> Options:
    """Options of the TensorRT provider; its engines, and times of kernels, are kept in `folder`."""
    least, best, most = profile_shapes(manifest)
    return {
        "device_id": str(gpu),
        "trt_cuda_graph_enable": str(graphs),  # True or False; 1 is refused here
        "trt_builder_optimization_level": "3",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": best,
        "trt_profile_max_shapes": most,
    }


def profile_shapes(manifest: Manifest) -> tuple[str, str, str]:
    """The smallest, the likeliest and the largest inputs, as in `ids:1x77,noise:1x4x8x8`.

    The likeliest is one picture of the default size: that is what waits for an engine alone.
    """
    noises = [manifest.noise_shape(size) for size in manifest.sizes]  # [C, h, w] each
    least = tuple(min(lengths) for lengths in zip(*noises, strict=True))
    most = tuple(max(lengths) for lengths in zip(*noises, strict=True))
    return (
        _shapes(manifest, 1, least),
        _shapes(manifest, 1, noises[0]),
        _shapes(manifest, manifest.max_batch, most),
    )


def _shapes(manifest: Manifest, batch: int, noise: tuple[int, ...]) -> str:
    named = []
    for tensor in manifest.inputs:
        rest = noise if tensor.name == "noise" else tensor.shape[1:]
        named.append(f"{tensor.name}:{'x'.join(map(str, (batch, *rest)))}")
    return ",".join(named)


def engine_folder(device: Device, digest: str) -> Path:
    """The folder for the engines of one artefact, made if need be; raises SettingsError.

    ONNX Runtime names an engine by the nodes of its graph, not by its weights: two artefacts that
    shared a folder could be given each other's engine.
    """
    given = device.engine_cache
    cache = given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = (given or cache / "singlepass" / "tensorrt") / digest
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"engine_cache is {given}: TensorRT's engines cannot be kept in {folder}: "
            f"{error.strerror}"
        ) from None
    return folder
