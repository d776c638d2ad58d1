"""Inputs and outputs that lie on the device at fixed addresses, so that calls can be replayed.

A CUDA graph repeats a recorded call on the very addresses that it was recorded with. So each shape
of a batch has its buffers and its number, under which ONNX Runtime keeps the recording.
"""

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serve.images import Pixels
from serve.providers import Device

Arrays = dict[str, NDArray[np.generic]]  # a batch's inputs by name, [B, ...]
Shapes = tuple[tuple[int, ...], ...]
GRAPH_ID = "gpu_graph_id"


class DeviceBuffers:
    """Runs a session on buffers of the device; in one thread, as recordings belong to theirs."""

    def __init__(self, session: Any, output: str, device: Device) -> None:
        self._session = session
        self._output = output
        self._device = device
        self._bound: dict[Shapes, _Bound] = {}

    def run(self, inputs: Arrays, shape: tuple[int, ...]) -> Pixels:
        """The graph's output, uint8 of that shape, which belongs to the caller.

        The first call with a shape takes several times as long: buffers and recording are made.
        """
        key = tuple(inputs[name].shape for name in sorted(inputs))
        bound = self._bound.get(key)
        if bound is None:
            number = len(self._bound) + 1
            bound = _Bound(self._session, inputs, self._output, shape, self._device, number)
            self._bound[key] = bound
        return bound.run(inputs)


class _Bound:
    def __init__(
        self,
        session: Any,
        inputs: Arrays,
        output: str,
        shape: tuple[int, ...],
        device: Device,
        number: int,
    ) -> None:
        kind, gpu = device.memory
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._inputs = {
            name: make(value.shape, value.dtype.type, kind, gpu) for name, value in inputs.items()
        }
        self._image = make(shape, np.uint8, kind, gpu)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(output, self._image)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, str(number))

    def run(self, inputs: Arrays) -> Pixels:
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(self._binding, self._options)
        return np.array(self._image.numpy())  # on the CPU it is the buffer itself
