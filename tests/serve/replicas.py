"""Real gRPC servers with a model of grey pictures, and a real DNS server that knows them all."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
from fake_triton import config_of, response_of
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serve.model import Model


class Replica(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One server; its pictures are of its own shade. `failing` refuses every picture."""

    def __init__(self, model: Model, address: str, shade: int) -> None:
        self._config = config_of(model)
        self._shade = shade
        self.failing = False
        self.asked = 0
        self.metadata: dict[str, str] = {}  # of the latest picture
        self.server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(address)

    async def ModelReady(self, request, context):  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request, context):  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self._config)

    async def ModelInfer(self, request, context):  # noqa: N802
        self.asked += 1
        if self.failing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it is going down")
        self.metadata = dict(context.invocation_metadata())
        return response_of(np.full((1, 64, 64, 3), self._shade, np.uint8))


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for IPv4 addresses with `hosts`, every other one with nothing."""

    def __init__(self, hosts: list[str]) -> None:
        self._hosts = hosts

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address) -> None:
        end = data.index(0, 12) + 5  # the name's end, then type and class, two bytes each
        hosts = self._hosts if data[end - 4 : end - 2] == b"\0\1" else []
        head = data[:2] + b"\x81\x80\0\1" + len(hosts).to_bytes(2, "big") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4"  # the name of the question, A, IN, 1 s, 4 bytes
        answers = b"".join(record + socket.inet_aton(host) for host in hosts)
        self._transport.sendto(head + data[12:end] + answers, address)


@asynccontextmanager
async def replicas(model: Model, hosts: list[str]) -> AsyncIterator[tuple[list[Replica], str]]:
    """A server on each host, all on one port, and the gRPC target that names them together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers = [Replica(model, f"{host}:{port}", 100 + index) for index, host in enumerate(hosts)]
    for replica in servers:
        await replica.server.start()
    names, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(hosts), ("127.0.0.1", 0)
    )
    name_server = names.get_extra_info("sockname")[1]
    try:
        yield servers, f"dns://127.0.0.1:{name_server}/triton.test:{port}"
    finally:
        names.close()
        await asyncio.gather(*(replica.server.stop(None) for replica in servers))
