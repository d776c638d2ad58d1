"""The `model.py` of a version that Triton's Python back end serves: ONNX Runtime on its graph.

It is copied into the version's folder and needs nothing but numpy and onnxruntime there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """One instance of the model: one session, one call per batch that Triton puts together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph of this very version on the instance's device."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        graph = Path(args["model_repository"]) / args["model_version"] / parameters["graph"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.output = config["output"][0]["name"]
        self.session = onnxruntime.InferenceSession(
            str(graph), options, providers=[_provider(args)]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, and give each its own rows of the pictures."""
        rows = [
            {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in self.inputs
            }
            for request in requests
        ]
        feeds = {name: np.concatenate([row[name] for row in rows]) for name in self.inputs}
        (pictures,) = self.session.run([self.output], feeds)
        ends = np.cumsum([len(row[self.inputs[0]]) for row in rows])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.output, np.ascontiguousarray(part))])
            for part in np.split(pictures, ends[:-1])
        ]


def _provider(args: dict[str, str]) -> Any:
    """CUDA on the instance's GPU, or the CPU; never silently the other."""
    if args["model_instance_kind"] != "GPU":
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise pb_utils.TritonModelException(
            "the config has KIND_GPU, but this onnxruntime has no CUDA; install onnxruntime-gpu"
        )
    return "CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])}
