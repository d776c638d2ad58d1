"""Opening a graph in ONNX Runtime, with proof that it runs where it was asked to.

ONNX Runtime would rather serve on the CPU than fail. Here a provider that is asked for and not
there is an error, which says what is missing: the package, a library, or the GPU.
"""

import ctypes
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serve.errors import RepositoryError, SettingsError
from serve.model import Model
from serve.providers import NAMES, Device, Provider, providers_of

# ONNX Runtime raises these when a file is no graph that it can run; they share no parent.
UNUSABLE_GRAPH = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# And these for a device; a RuntimeError is no parent of those above.
UNUSABLE_DEVICE = (RuntimeError, ort_errors.EPFail, ort_errors.EngineError)
NO_CAPTURE = "cannot use the graph capture feature"
HEAVY = ("Conv", "MatMul", "Gemm", "Attention")  # in names of operators, as in FusedConv
NEEDS: dict[Provider, str] = {
    "cuda": "CUDA and cuDNN, as in pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "TensorRT with CUDA and cuDNN, in the versions that onnxruntime-gpu names",
}
DRIVER = "libcuda.so"
CUDA_FAILURE = re.compile(r"CUDA failure \d+: [^;\n]*[^;\s]")

log = logging.getLogger(__name__)


def open_session(model: Model, threads: int, device: Device) -> Any:
    """The model's graph, opened on the device; `threads` 0: all cores.

    Raises SettingsError where the device is not to be had, RepositoryError for the graph's faults.
    """
    if device.provider != "cpu":
        _check_built(device.provider)
        onnxruntime.preload_dlls()  # CUDA's, where they came as packages
    try:
        session = _open(model, threads, device, graphs=True)
    except UNUSABLE_DEVICE as error:
        raise SettingsError(_why_unusable(device, str(error))) from None
    except UNUSABLE_GRAPH as error:
        raise RepositoryError(f"ONNX Runtime cannot load {model.graph}: {error}") from None
    _check_used(session, model, device)
    return session


def _open(model: Model, threads: int, device: Device, graphs: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # its warnings are about graph rewriting; errors are raised
    if device.provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = providers_of(model.manifest, device, graphs)
    try:
        return onnxruntime.InferenceSession(
            model.graph, options, providers=providers, enable_fallback=0
        )
    except ort_errors.Fail as error:
        if not graphs or NO_CAPTURE not in str(error):
            raise
        log.warning("%s runs without CUDA graphs: %s", model.label, error)
        return _open(model, threads, device, graphs=False)


def _check_built(provider: Provider) -> None:
    built = onnxruntime.get_available_providers()
    if NAMES[provider] not in built:
        raise SettingsError(
            f"provider is {provider!r}, but {onnxruntime.package_name or 'onnxruntime'} "
            f"{onnxruntime.__version__} is built for {', '.join(built)} alone: "
            "install onnxruntime-gpu in place of onnxruntime"
        )


def _check_used(session: Any, model: Model, device: Device) -> None:
    """The provider is there, and what is heavy in the graph is not left to the CPU."""
    if NAMES[device.provider] not in session.get_providers():
        raise SettingsError(_why_unusable(device, "it was left out without a word"))
    if device.provider == "cpu":
        return
    operators = _operators(session)
    log.info("%s runs on %s", model.label, _listed(operators))
    if not operators[device.provider]:
        raise RepositoryError(f"{device.provider} can run no operator of {model.graph}")
    left = [name for name in operators["cpu"] if any(part in name for part in HEAVY)]
    if left:
        raise RepositoryError(
            f"{device.provider} leaves operators of {model.graph} to the CPU: {', '.join(left)}"
        )


def _operators(session: Any) -> dict[Provider, Counter[str]]:
    """How many operators of each name were assigned to each provider."""
    found: dict[Provider, Counter[str]] = {provider: Counter() for provider in NAMES}
    named = {name: provider for provider, name in NAMES.items()}
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise SettingsError(
            f"{onnxruntime.package_name} {onnxruntime.__version__} cannot say "
            "what runs on the GPU: a later one is needed"
        )
    for part in session.get_provider_graph_assignment_info():
        found[named[part.ep_name]].update(node.op_type for node in part.get_nodes())
    return found


def _listed(operators: dict[Provider, Counter[str]]) -> str:
    used = {name: counted for name, counted in operators.items() if counted}
    words = [f"{name}: {counted.total()} operators" for name, counted in used.items()]
    return ", ".join(words) + (f" ({', '.join(sorted(used['cpu']))})" if "cpu" in used else "")


def _why_unusable(device: Device, said: str) -> str:
    """One sentence: which library is missing, else what ONNX Runtime said of the GPU."""
    missing = _missing_library(device.provider)
    if missing is None:
        failure = CUDA_FAILURE.search(said)
        reason = failure[0] if failure else said.strip()[-300:]
        named = f"provider is {device.provider!r} and gpu {device.gpu}"
        return f"{named}, which cannot be used: {reason}"
    if DRIVER in missing:
        return f"provider is {device.provider!r}, but there is no NVIDIA driver here: {missing}"
    return (
        f"provider is {device.provider!r}, whose library does not load: {missing}; "
        f"it needs {NEEDS[device.provider]}"
    )


def _missing_library(provider: Provider) -> str | None:
    """What keeps the provider's own library from loading; None if it loads."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    for library in folder.glob(f"libonnxruntime_providers_{provider}.so*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return None
