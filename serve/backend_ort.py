"""The back end in this process: ONNX Runtime on the CPU, behind the micro-batcher."""

import asyncio
import math
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serve.backend import Inferred
from serve.batcher import Batcher
from serve.errors import InferenceError, RepositoryError
from serve.images import Pixels
from serve.manifest import Tensor
from serve.model import Feeds, Model
from serve.service_times import ServiceTimes, measure

MEASURE_S = 2.5

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
ELEMENT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OrtBackend:
    """Serves one model. `threads` 0: all cores; `measure_s` 0: no measuring, one at a time."""

    def __init__(self, model: Model, threads: int = 0, measure_s: float = MEASURE_S) -> None:
        self._model = model
        self._threads = threads
        self._measure_s = measure_s
        self._session: Any = None
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether it has started and not been closed."""
        return self._batcher is not None

    @property
    def why_not(self) -> str:
        """Why it is not ready."""
        return "the model is not loaded"

    async def start(self) -> None:
        """Open the graph and measure it, off the event loop."""
        times = await asyncio.to_thread(self._open)
        self._batcher = Batcher(self.run, times)

    async def close(self) -> None:
        """Stop the batcher and free the graph."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close()
        self._session = None

    def wait_s(self, pictures: int) -> float:
        """Seconds until that many more would be made."""
        assert self._batcher is not None, "wait_s before start or after close"
        return self._batcher.wait_s(pictures)

    def infer(self, feeds: Feeds, within_s: float = math.inf) -> "asyncio.Future[Inferred]":
        """Queue one picture. Admission has foretold that it is made in time: none is dropped."""
        assert self._batcher is not None, "infer before start or after close"
        return self._batcher.submit(feeds)

    def run(self, rows: list[Feeds]) -> list[Pixels]:
        """One call of the graph on a batch of rows of one size; blocks. One [H, W, 3] a row."""
        inputs = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        (images,) = self._session.run([self._model.manifest.output.name], inputs)
        expected = (len(rows), *self._model.manifest.picture_shape(rows[0]["noise"].shape))
        if images.shape != expected:
            raise InferenceError(f"the graph made {images.shape}, the manifest says {expected}")
        return list(images)

    def _open(self) -> ServiceTimes:
        self._session = _session(self._model, self._threads)
        if self._measure_s == 0:
            return ServiceTimes({1: 0.0})
        ids = self._model.tokenize("")
        rows: list[Feeds] = [
            {**ids, "noise": self._model.noise(seed)}
            for seed in range(self._model.manifest.max_batch)
        ]
        return measure(self.run, rows, self._measure_s)


def _session(model: Model, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # its warnings are about graph rewriting; errors are raised
    try:
        session = onnxruntime.InferenceSession(
            model.graph, options, providers=["CPUExecutionProvider"]
        )
    except UNUSABLE_GRAPH as error:
        raise RepositoryError(f"ONNX Runtime cannot load {model.graph}: {error}") from None
    _check(model, session.get_inputs(), model.manifest.inputs, "inputs")
    _check(model, session.get_outputs(), (model.manifest.output,), "outputs")
    return session


def _check(model: Model, nodes: list[Any], tensors: tuple[Tensor, ...], kind: str) -> None:
    """The graph takes and gives what the manifest says, by name and element type."""
    found = {node.name: node.type for node in nodes}
    listed = {tensor.name: ELEMENT_TYPES[tensor.dtype] for tensor in tensors}
    if found != listed:
        raise RepositoryError(f"{model.graph} has {kind} {found}, the manifest says {listed}")
