"""The connection to Triton: gRPC to every server that a name stands for, and the calls on it."""

import json
from collections.abc import Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

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
OPTIONS = [
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


class TritonChannel:
    """Calls of Triton's own protocol. Each raises grpc.aio.AioRpcError with Triton's status.

    `target` is gRPC's name of the servers, as in dns:///HOST:PORT; each is asked in its turn.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def infer(self, request: Any, timeout_s: float | None, headers: Mapping[str, str]) -> Any:
        """The ModelInferResponse to a ModelInferRequest; cancelling it cancels it at Triton."""
        return await self._stub.ModelInfer(
            request, timeout=timeout_s, metadata=tuple(headers.items())
        )

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        """Whether this version can be asked for pictures."""
        request = pb.ModelReadyRequest(name=model, version=version)
        return bool((await self._stub.ModelReady(request, timeout=timeout_s)).ready)

    async def config(self, model: str, version: str, timeout_s: float) -> Any:
        """The ModelConfig of this version."""
        request = pb.ModelConfigRequest(name=model, version=version)
        return (await self._stub.ModelConfig(request, timeout=timeout_s)).config

    async def close(self) -> None:
        """Let the connections go; calls in work are cancelled."""
        await self._channel.close()


def connect(server: str) -> TritonChannel:
    """A channel to every server that the name in HOST:PORT stands for."""
    return TritonChannel(f"dns:///{server}")
