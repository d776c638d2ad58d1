"""The back end in this process: ONNX Runtime behind the micro-batcher, on the CPU or on one GPU."""

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from serve.backend import Inferred
from serve.batcher import Batcher
from serve.device_buffers import Arrays, DeviceBuffers
from serve.errors import InferenceError, RepositoryError
from serve.give_way import give_way
from serve.images import Pixels
from serve.machine import Machine, usable_cores
from serve.manifest import Tensor
from serve.measuring import measure
from serve.metrics import ModelMetrics
from serve.model import Feeds, Model
from serve.providers import Device
from serve.service_times import ServiceTimes
from serve.session import open_session
from serve.timed_calls import Alone, TimedCalls
from serve.turn import USUAL, Turn

MEASURE_S = 1.5
SHORT_S = 0.1  # a longer call gains from all the threads, and its graph may not fit twice
LONG_S = 1.0  # of a first call, which warms up: then it is not a short one
DIVIDED_GAIN = 1.15  # several calls at a time must make so many times the pictures of fewer
CPU = Device()

ELEMENT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)", "uint8": "tensor(uint8)"}

log = logging.getLogger(__name__)


class OrtBackend:
    """Serves one model. `threads` 0: all cores; `measure_s` 0: no measuring, one at a time.

    On a CPU a short call keeps many threads waiting for each other: then they are divided among
    several calls at a time, as it is measured to pay. Back ends that are given the same `machine`
    share its cores.
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
        self._machine = machine or machine_for(threads, device)
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
            loop = asyncio.get_running_loop()
            times = await loop.run_in_executor(opener, self._open, loop)
        finally:
            opener.shutdown(wait=False)
        if self._measure_s > 0:
            told = ", ".join(f"{size} in {s * 1e3:.1f} ms" for size, s in times.seconds.items())
            log.info("%s draws %s, %d at a time", self._model.label, told, times.calls)
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

    def _open(self, loop: asyncio.AbstractEventLoop) -> ServiceTimes:
        model = self._model
        self._session = open_session(model, self._threads, self._device)
        _check(model, self._session.get_inputs(), model.manifest.inputs, "inputs")
        _check(model, self._session.get_outputs(), (model.manifest.output,), "outputs")
        if self._device.provider != "cpu":
            self._buffers = DeviceBuffers(self._session, model.manifest.output.name, self._device)
        if self._measure_s == 0:
            return ServiceTimes({1: 0.0})
        rows = self._rows(model.default_size, model.manifest.max_batch)
        alone = partial(self._machine.alone, loop)
        calls = self._divided(rows[:1], alone)
        times = measure(self._timed(calls, alone), rows, self._measure_s)
        if self._buffers is not None:
            self._record_other_sizes(list(times.seconds), alone)
        return times

    def _timed(self, calls: int, alone: Alone) -> TimedCalls:
        return TimedCalls(self.run, self._machine.executor, calls, alone)

    def _divided(self, row: list[Feeds], alone: Alone) -> int:
        """How many calls run at a time; from here on the session has the threads of one of them.

        Twice as many with half of the threads each, for as long as that gains and changes nothing.
        """
        calls, cores = 1, self._machine.cores
        if cores == 1:
            return calls
        expected, best_s = self._timed(calls, alone).fastest(row, LONG_S)
        while 2 * calls <= cores and best_s <= SHORT_S:
            before = self._session
            self._session = open_session(self._model, cores // (2 * calls), self._device)
            pictures, taken_s = self._timed(2 * calls, alone).fastest(row, LONG_S)
            changed = not np.array_equal(pictures, expected)
            if changed or 2 * best_s < DIVIDED_GAIN * taken_s:
                if changed:
                    log.warning("%d calls at a time change the pictures", 2 * calls)
                self._session = before
                break
            calls, best_s = 2 * calls, taken_s
        return calls

    def _record_other_sizes(self, batches: list[int], alone: Alone) -> None:
        """The first call with a shape is slow on a GPU: nobody shall wait for it."""
        for size in self._model.manifest.sizes[1:]:
            for batch in batches:
                self._timed(1, alone)(self._rows(size, batch))

    def _rows(self, size: str, count: int) -> list[Feeds]:
        return [
            {**self._model.example(seed), "noise": self._model.noise(seed, size)}
            for seed in range(count)
        ]


def machine_for(threads: int, device: Device = CPU) -> Machine:
    """The machine of that many threads (0: all cores); a GPU runs one call at a time."""
    return Machine(1 if device.provider != "cpu" else threads or usable_cores())


def _check(model: Model, nodes: list[Any], tensors: tuple[Tensor, ...], kind: str) -> None:
    """The graph takes and gives what the manifest says, by name and element type."""
    found = {node.name: node.type for node in nodes}
    listed = {tensor.name: ELEMENT_TYPES[tensor.dtype] for tensor in tensors}
    if found != listed:
        raise RepositoryError(f"{model.graph} has {kind} {found}, the manifest says {listed}")
