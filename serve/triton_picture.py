"""One picture in Triton's protocol: the request that asks for it, the response that holds it.

The messages are filled directly. What is the same in all requests for one size is made once and
copied; tensors go in and come out as the bytes that they are.
"""

import math
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from serve.errors import InferenceError
from serve.images import Pixels
from serve.manifest import Manifest
from serve.model import Feeds

DATATYPES = {"int64": "INT64", "float32": "FP32"}


class TritonPicture:
    """Requests to one version of a model, and what its responses must be."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._templates: dict[tuple[int, ...], Any] = {}  # by shape of the noise

    def request(self, feeds: Feeds, within_s: float = math.inf, priority: int = 0) -> Any:
        """A ModelInferRequest with a batch of one; `priority` 0 is the model's default."""
        shape = feeds["noise"].shape
        if shape not in self._templates:
            self._templates[shape] = self._template(feeds)
        request = pb.ModelInferRequest()
        request.CopyFrom(self._templates[shape])
        request.raw_input_contents.extend(
            np.ascontiguousarray(feeds[tensor.name], tensor.dtype).tobytes()
            for tensor in self._manifest.inputs
        )
        if within_s < math.inf:
            request.parameters["timeout"].int64_param = max(1, round(within_s * 1e6))
        if priority:
            request.parameters["priority"].uint64_param = priority
        return request

    def pixels(self, response: Any, feeds: Feeds) -> Pixels:
        """The picture, [H, W, 3]; InferenceError if it is not what the manifest says."""
        output = self._manifest.output.name
        expected = self._manifest.picture_shape(feeds["noise"].shape)
        found = {
            tensor.name: (tensor, raw)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=False)
        }
        if output not in found:
            raise InferenceError(f"Triton made {sorted(found)}, the manifest says {output}")
        tensor, raw = found[output]
        shape, size = tuple(tensor.shape), math.prod(expected)
        if (tensor.datatype, shape, len(raw)) != ("UINT8", (1, *expected), size):
            raise InferenceError(
                f"Triton made {tensor.datatype} {shape} in {len(raw)} bytes, "
                f"the manifest says UINT8 {(1, *expected)}"
            )
        return np.frombuffer(raw, np.uint8).reshape(expected)

    def _template(self, feeds: Feeds) -> Any:
        manifest = self._manifest
        request = pb.ModelInferRequest(
            model_name=manifest.model, model_version=str(manifest.version)
        )
        for tensor in manifest.inputs:
            request.inputs.add(
                name=tensor.name,
                datatype=DATATYPES[tensor.dtype],
                shape=(1, *(feeds[tensor.name].shape or (1,))),  # a number goes as one of one
            )
        request.outputs.add(name=manifest.output.name)
        return request
