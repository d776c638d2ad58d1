"""What this package uses of TensorRT's Python API, of version 10 and of version 11.

TensorRT is one argument, `trt`: the module itself, or a stand-in with the same names. Its classes
are stated here under their own names, with the members that are used and no others; the tests hold
every one of them, and every `trt.name` in the code, against the real bindings of both versions.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from export.errors import EngineError

Trt = Any  # the module: it has no type of its own, its classes are below

INSTALL = "pip install tensorrt-cu13 (CUDA 13) or tensorrt-cu12 (CUDA 12)"


class IHostMemory(Protocol):
    """Bytes that TensorRT owns; `memoryview` reads them."""

    nbytes: int


class ITensor(Protocol):
    """An input or output of a network."""

    name: str


class INetworkDefinition(Protocol):
    """What the parser fills."""

    num_inputs: int

    def get_input(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    """The range of shapes of each input that one engine is tuned for."""

    def set_shape(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None: ...


class ITimingCache(Protocol):
    """What was measured in earlier builds."""

    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    """The options of one build."""

    builder_optimization_level: int
    hardware_compatibility_level: Any
    progress_monitor: Any

    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Makes networks, configs and engines."""

    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class ParserError(Protocol):
    """One thing that the ONNX parser could not take; `node` is an index, -1 if it is no node."""

    def code(self) -> Any: ...
    def desc(self) -> str: ...
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads an ONNX file, and weights beside it, into a network."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class ISerializationConfig(Protocol):
    """What a serialized engine holds."""

    def set_flag(self, flag: Any) -> bool: ...
    def clear_flag(self, flag: Any) -> bool: ...


class IExecutionContext(Protocol):
    """One user of an engine: its shapes, its buffers, its next call."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """A deserialized plan."""

    num_io_tensors: int
    num_optimization_profiles: int
    device_memory_size_v2: int
    refittable: bool

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Any]: ...
    def create_execution_context(self) -> IExecutionContext | None: ...
    def create_serialization_config(self) -> ISerializationConfig: ...
    def serialize_with_config(self, arg0: ISerializationConfig, /) -> IHostMemory | None: ...


class Runtime(Protocol):
    """Opens plans."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class Refitter(Protocol):
    """Gives an engine other weights."""

    def get_missing_weights(self) -> list[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class OnnxParserRefitter(Protocol):
    """Takes the weights from an ONNX file."""

    num_errors: int

    def refit_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


def load_tensorrt() -> Trt:
    """The installed TensorRT; `EngineError` says how to install it."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise EngineError(
            f"TensorRT cannot be loaded here ({error}); install it with {INSTALL}, "
            f"or build in NVIDIA's container as deploy/tensorrt does"
        ) from error


def member(trt: Trt, names: Any, name: str, option: str) -> Any:
    """`names.name`, an enum's member that some versions lack; `option` is what needs it."""
    if not hasattr(names, name):
        raise EngineError(
            f"TensorRT {trt.__version__} has no {names.__name__}.{name}, which {option} needs; "
            f"leave {option} out or take a newer TensorRT"
        )
    return getattr(names, name)


def parser_errors(parser: OnnxParser | OnnxParserRefitter) -> str:
    """Every error of a parser with the node it lies at, in one line."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(_told(error) for error in errors)


def _told(error: ParserError) -> str:
    """`node 'name' (Operator, number 12): what is wrong [code]`."""
    code = f"[{error.code().name}]"
    if error.node() < 0:
        return f"{error.desc()} {code}"
    where = f"node {error.node_name()!r} ({error.node_operator()}, number {error.node()})"
    return f"{where}: {error.desc()} {code}"
