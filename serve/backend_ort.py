"""The back end in this process: ONNX Runtime behind the micro-batcher, on the CPU or on one GPU."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serve.backend import Inferred
from serve.batcher import Batcher
from serve.device_buffers import Arrays, DeviceBuffers
from serve.errors import InferenceError, RepositoryError
from serve.give_way import give_way
from serve.images import Pixels
from serve.machine import Machine
from serve.manifest import Tensor
from serve.measuring import measure
from serve.metrics import ModelMetrics
from serve.model import Feeds, Model
from serve.providers import Device
from serve.service_times import ServiceTimes
from serve.session import open_session
from serve.turn import USUAL, Turn

MEASURE_S = 1.5
CPU = Device()

ELEMENT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OrtBackend:
    """Serves one model. `threads` 0: all cores; `measure_s` 0: no measuring, one at a time.

    Back ends that are given the same `machine` call their models in turn.
    """

    def __init__(
        self,
        model: Model,
        threads: int = 0,
        measure_s: float = MEASURE_S,
        *,
        device: Device = CPU,
        machine: Machine | None = None,
        metrics: ModelMetrics | None = None,
    ) -> None:
        self._model = model
        self._threads = threads
        self._measure_s = measure_s
        self._device = device
        self._owns_machine = machine is None
        self._machine = machine or Machine()
        self._metrics = metrics
        self._session: Any = None
        self._buffers: DeviceBuffers | None = None
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether it has started and not been closed."""
        return self._batcher is not None

    @property
    def why_not(self) -> str:
        """Why it is not ready."""
        return "the model is not loaded"

    @property
    def waiting(self) -> int:
        """Pictures that have not begun."""
        return 0 if self._batcher is None else self._batcher.waiting

    async def start(self) -> None:
        """Open the graph and measure it, off the event loop.

        Raises RepositoryError for the graph's faults, SettingsError where there is no such device.
        """
        # ONNX Runtime's own threads take after the one that opens the session
        opener = ThreadPoolExecutor(1, "open", initializer=give_way)
        try:
            times = await asyncio.get_running_loop().run_in_executor(opener, self._open)
        finally:
            opener.shutdown(wait=False)
        self._batcher = Batcher(self.run, times, self._machine, self._metrics)

    async def close(self) -> None:
        """Stop the batcher and free the graph."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close()
        if self._owns_machine:
            self._machine.close()
        self._session = self._buffers = None

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        """Seconds until that many more would be made."""
        assert self._batcher is not None, "wait_s before start or after close"
        return self._batcher.wait_s(pictures, turn)

    def infer(
        self, feeds: Feeds, within_s: float = math.inf, turn: Turn = USUAL
    ) -> "asyncio.Future[Inferred]":
        """Queue one picture."""
        assert self._batcher is not None, "infer before start or after close"
        return self._batcher.submit(feeds, within_s, turn)

    def run(self, rows: list[Feeds]) -> list[Pixels]:
        """One call of the graph on a batch of rows of one size; blocks. One [H, W, 3] a row."""
        inputs = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        expected = (len(rows), *self._model.manifest.picture_shape(rows[0]["noise"].shape))
        images = self._call(inputs, expected)
        if images.shape != expected:
            raise InferenceError(f"the graph made {images.shape}, the manifest says {expected}")
        return list(images)

    def _call(self, inputs: Arrays, expected: tuple[int, ...]) -> Pixels:
        if self._buffers is not None:
            return self._buffers.run(inputs, expected)
        (images,) = self._session.run([self._model.manifest.output.name], inputs)
        assert isinstance(images, np.ndarray), f"the output is {type(images)}"
        return images

    def _open(self) -> ServiceTimes:
        model = self._model
        self._session = open_session(model, self._threads, self._device)
        _check(model, self._session.get_inputs(), model.manifest.inputs, "inputs")
        _check(model, self._session.get_outputs(), (model.manifest.output,), "outputs")
        if self._device.provider != "cpu":
            self._buffers = DeviceBuffers(self._session, model.manifest.output.name, self._device)
        if self._measure_s == 0:
            return ServiceTimes({1: 0.0})
        rows = self._rows(model.default_size, model.manifest.max_batch)
        times = measure(self.run, rows, self._measure_s, self._machine.executor)
        if self._buffers is not None:
            self._record_other_sizes(list(times.seconds))
        return times

    def _record_other_sizes(self, batches: list[int]) -> None:
        """The first call with a shape is slow on a GPU: nobody shall wait for it."""
        for size in self._model.manifest.sizes[1:]:
            for batch in batches:
                self._machine.executor.submit(self.run, self._rows(size, batch)).result()

    def _rows(self, size: str, count: int) -> list[Feeds]:
        return [
            {**self._model.example(seed), "noise": self._model.noise(seed, size)}
            for seed in range(count)
        ]


def _check(model: Model, nodes: list[Any], tensors: tuple[Tensor, ...], kind: str) -> None:
    """The graph takes and gives what the manifest says, by name and element type."""
    found = {node.name: node.type for node in nodes}
    listed = {tensor.name: ELEMENT_TYPES[tensor.dtype] for tensor in tensors}
    if found != listed:
        raise RepositoryError(f"{model.graph} has {kind} {found}, the manifest says {listed}")
