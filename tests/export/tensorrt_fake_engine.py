"""The half of the stand-in for TensorRT that opens plans, runs and refits them: ONNX Runtime."""

import ctypes
import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from tensorrt_graph import SCALE

if TYPE_CHECKING:
    from tensorrt_fake import FakeTensorrt

DEVICE_BYTES = 123_456


class Memory(bytes):
    """Bytes with a length, as IHostMemory."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Stream:
    """The CPU, as a CUDA stream."""

    device = torch.device("cpu")
    cuda_stream = 7
    synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1


class Error:
    """A ParserError."""

    def __init__(self, code, desc: str, node: int = -1, name: str = "", operator: str = "") -> None:
        self._values = (code, desc, node, name, operator)

    def code(self):
        return self._values[0]

    def desc(self) -> str:
        return self._values[1]

    def node(self) -> int:
        return self._values[2]

    def node_name(self) -> str:
        return self._values[3]

    def node_operator(self) -> str:
        return self._values[4]


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: "FakeTensorrt", log) -> None:
        self._trt, self._log = trt, log

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "Engine | None":
        trt = self._trt
        head, _, graph = serialized_engine.partition(b"\n")
        facts = json.loads(head)
        host_code = facts["compatible"] and self.engine_host_code_allowed
        if len(graph) != facts["length"] or trt.fails == "open":
            self._log.log(trt.ILogger.Severity.ERROR, "the plan is damaged")
            return None
        if facts["tensorrt"] != trt.__version__ and not host_code:
            self._log.log(trt.ILogger.Severity.ERROR, f"built with {facts['tensorrt']}")
            return None
        return Engine(trt, facts, onnx.load_model_from_string(graph))


class SerializationConfig:
    def __init__(self) -> None:
        self.set: list[str] = []
        self.cleared: list[str] = []

    def set_flag(self, flag) -> bool:
        self.set.append(flag.name)
        return True

    def clear_flag(self, flag) -> bool:
        self.cleared.append(flag.name)
        return True


class Engine:
    device_memory_size_v2 = DEVICE_BYTES

    def __init__(self, trt: "FakeTensorrt", facts: dict, model) -> None:
        self.trt, self.facts, self.model = trt, facts, model
        self.values = [*model.graph.input, *model.graph.output]

    @cache  # noqa: B019  (an engine lives as long as its test)
    def session(self) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.model.SerializeToString())

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.facts["profiles"])

    @property
    def refittable(self) -> bool:
        return self.facts["refit"]

    def get_tensor_name(self, index: int) -> str:
        return self.values[index].name

    def get_tensor_mode(self, name: str):
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in [v.name for v in self.model.graph.input] else modes.OUTPUT

    def get_tensor_dtype(self, name: str):
        kind = next(v.type.tensor_type.elem_type for v in self.values if v.name == name)
        names = {TensorProto.FLOAT: "FLOAT", TensorProto.INT64: "INT64", TensorProto.UINT8: "UINT8"}
        return self.trt.DataType[names.get(kind, "FP8")]

    def get_tensor_profile_shape(self, name: str, profile_index: int):
        return self.facts["profiles"][profile_index][name]

    def create_execution_context(self) -> "Context | None":
        return None if self.trt.fails == "context" else Context(self)

    def create_serialization_config(self) -> SerializationConfig:
        self.trt.serialization = SerializationConfig()
        return self.trt.serialization

    def serialize_with_config(self, arg0: SerializationConfig) -> Memory | None:
        if self.trt.fails == "serialize":
            return None
        return self.trt.plan(self.model, {**self.facts, "stripped": False})


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.profile = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return stream_handle == Stream.cuda_stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self._engine.facts["profiles"][self.profile][name]
        self._shapes[name] = shape
        return all(a <= x <= b for a, x, b in zip(least, shape, largest, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory > 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, _, height, width = self._shapes["noise"]
        return (batch, height * SCALE, width * SCALE, 3)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine.trt.fails == "call" or self._engine.facts["stripped"]:
            return False
        feeds = {name: self._array(name, shape) for name, shape in self._shapes.items()}
        (pictures,) = self._engine.session().run(None, feeds)
        if self._engine.trt.fails == "rows":  # right alone, wrong in a batch
            pictures = np.ascontiguousarray(pictures[::-1])
        ctypes.memmove(self._addresses["image"], pictures.tobytes(), pictures.nbytes)
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """What lies at the address that was given for this input."""
        dtype = np.dtype(
            {"FLOAT": "float32"}.get(self._engine.get_tensor_dtype(name).name, "int64")
        )
        length = dtype.itemsize * int(np.prod(shape))
        content = ctypes.string_at(self._addresses[name], length)
        return np.frombuffer(content, dtype).reshape(shape)


class Refitter:
    def __init__(self, trt: "FakeTensorrt", engine: Engine, log) -> None:
        self.trt, self.engine, self.given = trt, engine, {}

    def get_missing_weights(self) -> list[str]:
        return [w.name for w in self.engine.model.graph.initializer if w.name not in self.given]

    def refit_cuda_engine(self) -> bool:
        for weight in self.engine.model.graph.initializer:
            weight.CopyFrom(self.given[weight.name])
        return self.trt.fails != "refit"


class OnnxParserRefitter:
    def __init__(self, trt: "FakeTensorrt", refitter: Refitter, log) -> None:
        self._trt, self._refitter, self._errors = trt, refitter, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Error:
        return self._errors[index]

    def refit_from_file(self, model: str) -> bool:
        own = {w.name: tuple(w.dims) for w in self._refitter.engine.model.graph.initializer}
        for weight in onnx.load(model).graph.initializer:
            if tuple(weight.dims) != own.get(weight.name, tuple(weight.dims)):
                code = self._trt.ErrorCode.REFIT_FAILED
                self._errors.append(Error(code, f"{weight.name} differs", 0, "mix", "Conv"))
            elif weight.name in own:
                self._refitter.given[weight.name] = weight
        if self._trt.fails == "missing":
            self._refitter.given = {}
        return not self._errors
