"""A Triton server that takes a function, behind its channel; config and answers are real ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2

from serve.model import Model

DTYPES = {"INT64": np.int64, "FP32": np.float32}
TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}

Function = Callable[[dict[str, np.ndarray]], Awaitable[np.ndarray]]


async def grey(feeds: dict[str, np.ndarray]) -> np.ndarray:
    """A picture without a model."""
    return np.full((1, 64, 64, 3), 128, np.uint8)


async def never(feeds: dict[str, np.ndarray]) -> np.ndarray:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def refusal(status: str, message: str) -> grpc.aio.AioRpcError:
    """What a call raises for a gRPC status."""
    return grpc.aio.AioRpcError(grpc.StatusCode[status], details=message)


def refusing(status: str, message: str) -> Function:
    async def refuse(feeds: dict[str, np.ndarray]) -> np.ndarray:
        raise refusal(status, message)

    return refuse


def config_of(model: Model, **changes: object) -> model_config_pb2.ModelConfig:
    """The config that a server of this model reports."""
    manifest = model.manifest

    def fields(tensor):
        dims = [-1 if side is None else side for side in tensor.shape[1:]]
        # one number a picture is [1] to a caller; the server reshapes it
        return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": dims or [1]}

    known = {
        "name": manifest.model,
        "max_batch_size": manifest.max_batch,
        "input": [fields(tensor) for tensor in manifest.inputs],
        "output": [fields(manifest.output)],
        "dynamic_batching": {"default_queue_policy": {"allow_timeout_override": True}},
    }
    return model_config_pb2.ModelConfig(**(known | changes))


class Asked(NamedTuple):
    """A picture that was asked for: the ModelInferRequest, the call's timeout, its metadata."""

    request: service_pb2.ModelInferRequest
    timeout_s: float | None
    headers: dict[str, str]


class FakeTriton:
    """A server of one model. `down` is what every call raises; `asked` records the requests."""

    def __init__(self, model: Model, function: Function = grey, **config: object) -> None:
        self.function = function
        self.place = (model.manifest.model, str(model.manifest.version))
        self._config = config_of(model, **config)
        self.down: grpc.aio.AioRpcError | None = None
        self.asked: list[Asked] = []
        self.cancelled = 0
        self.closed = False

    def __call__(self, server: str) -> "FakeTriton":
        """As `connect`."""
        return self

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        if self.down:
            raise self.down
        return (model, version) == self.place

    async def config(self, model: str, version: str, timeout_s: float):
        return self._config

    async def infer(self, request, timeout_s, headers):
        if self.down:
            raise self.down
        self.asked.append(Asked(request, timeout_s, dict(headers)))
        feeds = {
            tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            return response_of(await self.function(feeds))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed = True


def response_of(images: np.ndarray):
    """The ModelInferResponse that holds pictures, [1, H, W, 3]."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="image", datatype="UINT8", shape=images.shape)
    response.raw_output_contents.append(images.tobytes())
    return response
