"""onnxruntime as onnxruntime-gpu would be: it runs on the CPU what is sent to the GPU."""

from types import SimpleNamespace

import numpy as np
import onnxruntime

GPU_PACKAGE = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class FakeGpu:
    """Stands for the module. `on_cpu`: operators that the GPU cannot run; `fails`: errors to raise.

    `opened` are the providers of each session, `runs` the recording of each call and its batch.
    """

    def __init__(self, on_cpu=(), fails=(), absent=False, built=GPU_PACKAGE, folder=None):
        self.on_cpu, self.fails, self.absent, self.built = on_cpu, list(fails), absent, built
        self.opened: list[dict] = []
        self.runs: list[tuple[str, int]] = []
        self.buffers: list[tuple[str, int]] = []
        self.preloaded = False
        self.package_name, self.__version__ = "onnxruntime-gpu", "1.31.1"
        self.__file__ = str(folder / "__init__.py") if folder else onnxruntime.__file__
        self.SessionOptions = onnxruntime.SessionOptions
        self.RunOptions = onnxruntime.RunOptions
        self.ExecutionMode = onnxruntime.ExecutionMode
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.buffer)

    def get_available_providers(self):
        return self.built

    def preload_dlls(self):
        self.preloaded = True

    def buffer(self, shape, kind, device, gpu):
        self.buffers.append((device, gpu))
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)
        value.update_inplace(np.zeros(shape, kind))
        return value

    def InferenceSession(self, path, options, providers, enable_fallback):  # noqa: N802
        assert enable_fallback == 0, "onnxruntime would serve on the CPU without a word"
        self.opened.append(dict(providers))
        if self.fails:
            raise self.fails.pop(0)
        return FakeSession(self, onnxruntime.InferenceSession(path, options), providers[0][0])


class FakeSession:
    """The real session, which calls itself another provider's."""

    def __init__(self, gpu: FakeGpu, real: onnxruntime.InferenceSession, provider: str) -> None:
        self._gpu, self._real, self._provider = gpu, real, provider
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs
        self.io_binding = real.io_binding

    def get_providers(self):
        return ["CPUExecutionProvider"] if self._gpu.absent else [self._provider]

    def get_provider_graph_assignment_info(self):
        for part in self._real.get_provider_graph_assignment_info():
            here = any(node.op_type in self._gpu.on_cpu for node in part.get_nodes())
            name = "CPUExecutionProvider" if here else self._provider
            yield SimpleNamespace(ep_name=name, get_nodes=part.get_nodes)

    def run_with_iobinding(self, binding, options):
        self._real.run_with_iobinding(binding, options)
        batch = binding.get_outputs()[0].shape()[0]
        self._gpu.runs.append((options.get_run_config_entry("gpu_graph_id"), batch))
