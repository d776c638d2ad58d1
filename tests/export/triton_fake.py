"""A gRPC server in this process that speaks as much of Triton's protocol as the gate asks."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

Draw = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One version of one model, drawn by a function."""

    def __init__(self, model: str, version: str, draw: Draw) -> None:
        self.place, self.draw, self.batches = (model, version), draw, list[int]()

    def ModelReady(self, request, context):  # noqa: N802
        ready = (request.name, request.version) == self.place
        return service_pb2.ModelReadyResponse(ready=ready)

    def ModelInfer(self, request, context):  # noqa: N802
        feeds = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            dtype = triton_to_np_dtype(tensor.datatype)
            feeds[tensor.name] = np.frombuffer(raw, dtype).reshape(tensor.shape)
        try:
            pictures = self.draw(feeds)
        except ValueError as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        self.batches.append(len(pictures))
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="image", datatype="UINT8", shape=pictures.shape)
        answer.raw_output_contents.append(pictures.tobytes())
        return answer


@contextmanager
def running(triton: Triton) -> Iterator[str]:
    """The server's HOST:PORT while it runs."""
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
