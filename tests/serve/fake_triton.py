"""The client of a Triton server that takes a function; its config and its answers are real ones."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
from tritonclient.grpc import InferResult, model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

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


def refusal(status: str, message: str) -> InferenceServerException:
    """What tritonclient raises for a gRPC status."""
    return InferenceServerException(message, f"StatusCode.{status}")


def refusing(status: str, message: str) -> Function:
    async def refuse(feeds: dict[str, np.ndarray]) -> np.ndarray:
        raise refusal(status, message)

    return refuse


def config_of(model: Model, **changes: object) -> model_config_pb2.ModelConfig:
    """The config that a server of this model reports."""
    manifest = model.manifest

    def fields(tensor):
        dims = [-1 if side is None else side for side in tensor.shape[1:]]
        return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": dims}

    known = {
        "name": manifest.model,
        "max_batch_size": manifest.max_batch,
        "input": [fields(tensor) for tensor in manifest.inputs],
        "output": [fields(manifest.output)],
        "dynamic_batching": {"default_queue_policy": {"allow_timeout_override": True}},
    }
    return model_config_pb2.ModelConfig(**(known | changes))


class FakeTriton:
    """A server of one model. `down` is what every call raises; `asked` records the requests."""

    def __init__(self, model: Model, function: Function = grey, **config: object) -> None:
        self.function = function
        self.place = (model.manifest.model, str(model.manifest.version))
        self.config = config_of(model, **config)
        self.down: InferenceServerException | None = None
        self.asked: list[dict[str, object]] = []
        self.cancelled = 0
        self.closed = False

    def __call__(self, server: str) -> "FakeTriton":
        """As `connect`."""
        return self

    async def is_model_ready(self, name: str, version: str, client_timeout: float) -> bool:
        if self.down:
            raise self.down
        return (name, version) == self.place

    async def get_model_config(self, name: str, version: str, client_timeout: float):
        return service_pb2.ModelConfigResponse(config=self.config)

    async def infer(self, name, inputs, **options) -> InferResult:
        if self.down:
            raise self.down
        self.asked.append({"name": name, **options})
        feeds = {}
        for given in inputs:
            array = np.frombuffer(given._get_content(), DTYPES[given.datatype()])
            feeds[given.name()] = array.reshape(given.shape())
        try:
            return _result(await self.function(feeds))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed = True


def _result(images: np.ndarray) -> InferResult:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="image", datatype="UINT8", shape=images.shape)
    response.raw_output_contents.append(images.tobytes())
    return InferResult(response)
