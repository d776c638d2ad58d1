"""Triton asked as the gateway asks it: token ids and noise in, pixels out, one picture a request.

Over gRPC, which is what the gateway speaks, and over HTTP with binary tensors, where the same load
generator asks that asks the gateway. All requests are made before the start.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import grpc
import numpy as np
from asks import rows
from load import Answer, Ask, Load
from picture import Shapes
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

OUTPUT = "image"
DATATYPES = {"int64": "INT64", "float32": "FP32"}


class Drawn(NamedTuple):
    """The inputs of one picture; its pixels and its file as they are without a server."""

    inputs: dict[str, np.ndarray]
    pixels: bytes
    png: bytes


def draw(number: int) -> list[Drawn]:
    """What is asked of everybody, as tensors."""
    shapes, drawn = Shapes(), []
    for prompt, seed in rows(number):
        inputs = shapes.inputs(prompt, seed)
        (pixels,) = shapes.draw([inputs])
        drawn.append(Drawn(inputs, pixels.tobytes(), shapes.png(pixels, prompt, seed)))
    return drawn


def digest_of(picture: bytes) -> bytes:
    """As Ask has it."""
    return hashlib.sha256(picture).digest()


class GrpcAsk(NamedTuple):
    """As `Ask`, with Triton's message instead of bytes; it has what Load.count reads."""

    request: Any
    digest: bytes


def http_ask(model: str, one: Drawn) -> Ask:
    """KServe's protocol over HTTP with tensors as bytes behind the JSON, both ways."""
    tensors = [np.ascontiguousarray(value).tobytes() for value in one.inputs.values()]
    inputs = [
        {**described, "parameters": {"binary_data_size": len(tensor)}}
        for described, tensor in zip(_described(one), tensors, strict=True)
    ]
    outputs = [{"name": OUTPUT, "parameters": {"binary_data": True}}]
    content = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    body = b"".join([content, *tensors])
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(content)}"
        f"\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Ask(head.encode() + body, digest_of(one.pixels))


def grpc_ask(model: str, one: Drawn) -> GrpcAsk:
    """The message that the gateway sends."""
    request = pb.ModelInferRequest(model_name=model)
    for tensor in _described(one):
        request.inputs.add(**tensor)
    request.outputs.add(name=OUTPUT)
    request.raw_input_contents.extend(
        np.ascontiguousarray(value).tobytes() for value in one.inputs.values()
    )
    return GrpcAsk(request, digest_of(one.pixels))


def _described(one: Drawn) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": DATATYPES[value.dtype.name], "shape": [1, *value.shape]}
        for name, value in one.inputs.items()
    ]


async def grpc_loop(port: int, asks: Sequence[GrpcAsk], width: int, seconds: float) -> Load:
    """The closed loop over one channel, `width` calls at a time; an error is no right picture."""
    load, numbers = Load(), count()
    start = time.monotonic()

    async def ask_on() -> None:
        while True:
            ask, sent, answer = asks[next(numbers) % len(asks)], time.monotonic(), Answer()
            picture = b""
            try:
                picture = (await stub.ModelInfer(ask.request)).raw_output_contents[0]
                answer.status = 200
            except grpc.aio.AioRpcError:
                pass  # counted as broken
            load.asked += 1
            load.count(answer, picture, ask, sent, sent)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(ask_on() for _ in range(width)))
        except TimeoutError:
            pass  # what is cut off by the end is not counted
        load.seconds = load.last_s = time.monotonic() - start
    return load
