"""A TensorRT engine as a function from inputs to pictures, like `open_session`'s.

Buffers are torch's, on the GPU; the profile is chosen by the shapes of the inputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from export.engine.api import ICudaEngine, IExecutionContext, Trt, load_tensorrt
from export.engine.log import Log, attach
from export.engine.plan import open_plan
from export.errors import EngineError
from export.gate.cases import Feeds, Infer

# TensorRT's names of the types that cross our graph's border
TYPES = {
    "FLOAT": torch.float32,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
}


class Stream(Protocol):
    """What is used of `torch.cuda.Stream`."""

    device: torch.device
    cuda_stream: int

    def synchronize(self) -> None: ...


def open_engine(
    plan: Path, *, host_code: bool = False, trt: Trt | None = None, stream: Stream | None = None
) -> Infer:
    """Open the plan on the GPU; `host_code` is for version-compatible plans."""
    trt = load_tensorrt() if trt is None else trt
    stream = _stream() if stream is None else stream
    log = attach(Log, trt.ILogger, lambda line: None)
    engine = open_plan(trt, plan, log, host_code)
    context = engine.create_execution_context()
    if context is None:
        raise EngineError(f"there is no memory to run {plan}: {log.said()}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    (output,) = (name for name in names if name not in inputs)

    def infer(feeds: Feeds) -> NDArray[np.uint8]:
        given = {name: _on_device(engine, name, feeds, stream) for name in inputs}
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        index = choose_profile(engine, shapes)
        _hold(context.set_optimization_profile_async(index, stream.cuda_stream), "profile", log)
        for name, tensor in given.items():
            _hold(context.set_input_shape(name, shapes[name]), f"shape of {name}", log)
            _hold(context.set_tensor_address(name, tensor.data_ptr()), f"address of {name}", log)
        pictures = _result(engine, context, output, stream)
        _hold(context.set_tensor_address(output, pictures.data_ptr()), f"address of {output}", log)
        _hold(context.execute_async_v3(stream.cuda_stream), "call", log)
        stream.synchronize()
        levels: NDArray[np.uint8] = pictures.cpu().numpy()
        return levels

    return infer


def choose_profile(engine: ICudaEngine, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The first profile that takes all the shapes; `EngineError` says what the engine takes."""
    allowed = []
    for index in range(engine.num_optimization_profiles):
        ranges = {name: engine.get_tensor_profile_shape(name, index) for name in shapes}
        if all(_within(shapes[name], ranges[name]) for name in shapes):
            return index
        told = (f"{name} {tuple(low)} to {tuple(up)}" for name, (low, _, up) in ranges.items())
        allowed.append(", ".join(told))
    asked = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise EngineError(f"the engine does not take {asked}; it takes {' or '.join(allowed)}")


def _within(shape: tuple[int, ...], limits: Any) -> bool:
    """Between the least and the largest shape of (least, tuned, largest), length by length."""
    least, _, largest = (tuple(limit) for limit in limits)
    if len(least) != len(shape):
        return False
    return all(a <= x <= b for a, x, b in zip(least, shape, largest, strict=True))


def _on_device(engine: ICudaEngine, name: str, feeds: Feeds, stream: Stream) -> torch.Tensor:
    """One input in the engine's type; a type is never changed behind the caller's back."""
    if name not in feeds:
        raise EngineError(f"the engine's input {name} is missing; given are {', '.join(feeds)}")
    tensor = torch.from_numpy(np.ascontiguousarray(feeds[name]))
    wanted = _dtype(engine, name)
    if tensor.dtype != wanted:
        raise EngineError(f"the input {name} is {tensor.dtype}; the engine takes {wanted}")
    return tensor.to(stream.device)


def _result(
    engine: ICudaEngine, context: IExecutionContext, name: str, stream: Stream
) -> torch.Tensor:
    """Room for the output, whose shape follows from the inputs'."""
    shape = tuple(context.get_tensor_shape(name))
    return torch.empty(shape, dtype=_dtype(engine, name), device=stream.device)


def _dtype(engine: ICudaEngine, name: str) -> torch.dtype:
    found = engine.get_tensor_dtype(name).name
    if found not in TYPES:
        raise EngineError(f"the engine's {name} is {found}; known are {', '.join(TYPES)}")
    return TYPES[found]


def _hold(done: bool, what: str, log: Log) -> None:
    """TensorRT answers False where it could not."""
    if not done:
        raise EngineError(f"TensorRT refuses the {what}: {log.said()}")


def _stream() -> Stream:
    if not torch.cuda.is_available():
        raise EngineError("torch finds no CUDA GPU, which running an engine needs")
    stream: Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return stream
