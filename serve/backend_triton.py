"""The back end on Triton servers, over gRPC: single pictures go out, Triton forms the batches."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serve.backend import Inferred
from serve.errors import DeadlineError, InferenceError
from serve.images import Pixels
from serve.model import Feeds, Model
from serve.pace import Pace
from serve.triton_config import difference, obeys_deadlines
from serve.triton_errors import error_of

POLL_S = 0.5
PROBE_S = 2.0  # a server that does not answer a probe within this is not ready
RETRY_AFTER_S = 1.0
TRANSPORT_BYTES = 2**31 - 1
RETRY_BUFFER_BYTES = 2**24  # the noise of a large picture must fit, or gRPC does not repeat it

# A picture is a pure function of its inputs, so gRPC may ask again, twice, of the servers in turn;
# it stops doing so while more requests fail than are answered.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
}
CHANNEL = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", TRANSPORT_BYTES),
    ("grpc.max_receive_message_length", TRANSPORT_BYTES),
    ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A server that is frozen, or whose machine is gone, is found by pings. None is sent while it
    # answers the probes, so that its limit on pings is never met.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 4000),
]

log = logging.getLogger(__name__)


def connect(server: str) -> Any:
    """A client of every server that the name in HOST:PORT stands for, each in its turn."""
    return InferenceServerClient(f"dns:///{server}", channel_args=CHANNEL)


class TritonBackend:
    """Serves one version of a model; `server` is HOST:PORT of Triton's gRPC.

    It starts without a server, and is ready while one serves the version that the manifest names
    with the inputs and the output that it lists.
    """

    def __init__(self, model: Model, server: str, connect: Callable[[str], Any] = connect) -> None:
        self._model = model
        self._server = server
        self._connect = connect
        self._client: Any = None
        self._watching: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Future[Inferred]] = set()
        self._pace = Pace()
        self._why_not: str | None = f"Triton at {server} has not been asked yet"

    @property
    def ready(self) -> bool:
        """Whether the last probe found the model, as the manifest describes it."""
        return self._why_not is None

    @property
    def why_not(self) -> str:
        """Why it is not ready."""
        return self._why_not or ""

    async def start(self) -> None:
        """Look for the model once, and again all the time; a server that is not there may come."""
        self._client = self._connect(self._server)
        await self._look()
        self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Give up what is in work, and the connections."""
        client, self._client = self._client, None
        self._why_not = "the gateway has stopped"
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._calls:
            for call in self._calls:
                call.cancel()
            await asyncio.wait(self._calls)
        if client is not None:
            await client.close()

    def wait_s(self, pictures: int) -> float:
        """Seconds until that many more would be made, by how fast Triton answered lately."""
        return self._pace.wait_s(len(self._calls) + pictures)

    def infer(self, feeds: Feeds, within_s: float = math.inf) -> "asyncio.Future[Inferred]":
        """Send one picture, now; nobody waits for it longer than `within_s`."""
        assert self._client is not None, "infer before start or after close"
        call = asyncio.ensure_future(self._infer(feeds, within_s, len(self._calls) + 1))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    async def _infer(self, feeds: Feeds, within_s: float, in_work: int) -> Inferred:
        if within_s <= 0:
            raise DeadlineError("the deadline passed before Triton was asked", RETRY_AFTER_S)
        start = time.perf_counter()
        try:
            answer = await self._ask(feeds, within_s)
        except InferenceServerException as error:
            raise error_of(error.status(), str(error.message()), self._retry_after_s) from error
        except asyncio.CancelledError:
            if self._client is None:
                raise InferenceError("the gateway has stopped") from None
            raise
        taken_s = time.perf_counter() - start
        self._pace.add(taken_s, in_work)
        return Inferred(self._pixels(answer, feeds), 0.0, taken_s)

    async def _ask(self, feeds: Feeds, within_s: float) -> Any:
        manifest = self._model.manifest
        rows = {name: value[np.newaxis] for name, value in feeds.items()}
        inputs = [
            InferInput(name, row.shape, np_to_triton_dtype(row.dtype)).set_data_from_numpy(row)
            for name, row in rows.items()
        ]
        bounded = within_s < math.inf
        return await self._client.infer(
            manifest.model,
            inputs,
            model_version=str(manifest.version),
            outputs=[InferRequestedOutput(manifest.output.name)],
            timeout=max(1, round(within_s * 1e6)) if bounded else None,
            client_timeout=within_s if bounded else None,
        )

    def _pixels(self, answer: Any, feeds: Feeds) -> Pixels:
        """The one picture of an answer, checked against the manifest."""
        manifest = self._model.manifest
        images = answer.as_numpy(manifest.output.name)
        expected = (1, *manifest.picture_shape(feeds["noise"].shape))
        if images is None or images.shape != expected or images.dtype != np.uint8:
            got = "nothing" if images is None else f"{images.dtype} {images.shape}"
            raise InferenceError(f"Triton made {got}, the manifest says uint8 {expected}")
        pixels: Pixels = images[0]
        return pixels

    @property
    def _retry_after_s(self) -> float:
        return max(RETRY_AFTER_S, self.wait_s(0))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._look()

    async def _look(self) -> None:
        """Ask for the model, and log what has changed."""
        found = await self._probe()
        if found is None and self._why_not is not None:
            log.info("Triton at %s serves %s", self._server, self._model.label)
        elif found != self._why_not:
            log.warning("not ready: %s", found)
        self._why_not = found

    async def _probe(self) -> str | None:
        """Why pictures cannot be made now, or None."""
        name, version = self._model.manifest.model, str(self._model.manifest.version)
        try:
            if not await self._client.is_model_ready(name, version, client_timeout=PROBE_S):
                return f"Triton at {self._server} does not serve {self._model.label}"
            if self._why_not is None:
                return None
            answer = await self._client.get_model_config(name, version, client_timeout=PROBE_S)
        except InferenceServerException as error:
            return f"Triton at {self._server} does not serve {self._model.label}: {error.message()}"
        different = difference(answer.config, self._model.manifest)
        if different is None and not obeys_deadlines(answer.config):
            log.warning("%s: Triton's config lets no request set its deadline", self._model.label)
        return different and f"Triton at {self._server} has {self._model.label} with {different}"
