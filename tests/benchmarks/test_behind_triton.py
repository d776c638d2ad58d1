"""Triton asked directly is asked the same as by the gateway, and counted as strictly."""

import asyncio
import hashlib
import json
import math
import re

import grpc
import pytest
from behind_triton import DIRECT, PNG, RAW, Found, verdicts
from load import Ask
from picture import REPOSITORY
from tensors import Drawn, GrpcAsk, draw, grpc_ask, grpc_loop, http_ask
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serve.model import load_model
from serve.triton_picture import TritonPicture


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(1)[0]


def test_over_grpc_it_is_the_gateways_message(drawn):
    model = load_model(REPOSITORY, "shapes")
    message = grpc_ask("shapes", drawn).request
    message.model_version = "1"
    assert message == TritonPicture(model.manifest).request(drawn.inputs)


def test_over_http_the_tensors_lie_behind_the_json(drawn):
    ask = http_ask("shapes", drawn)
    head, _, body = ask.request.partition(b"\r\n\r\n")
    told, json_bytes = (
        int(re.search(rb"\r\n" + name + rb": (\d+)", head)[1])
        for name in (b"Content-Length", b"Inference-Header-Content-Length")
    )
    assert told == len(body)
    inputs = json.loads(body[:json_bytes])["inputs"]
    raw = grpc_ask("shapes", drawn).request.raw_input_contents
    sizes = [one["parameters"]["binary_data_size"] for one in inputs]
    assert (sizes, body[json_bytes:]) == ([len(one) for one in raw], b"".join(raw))
    assert ask.digest == hashlib.sha256(drawn.pixels).digest()


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the request's model name as the picture; refuses the model `down`."""

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.model_name == "down":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return pb.ModelInferResponse(raw_output_contents=[request.model_name.encode()])


def loaded(name: str):
    async def run():
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ask = GrpcAsk(pb.ModelInferRequest(model_name=name), hashlib.sha256(b"right").digest())
        load = await grpc_loop(port, [ask], 2, 0.2)
        await server.stop(None)
        return load

    return asyncio.run(run())


@pytest.mark.parametrize(("name", "good"), [("right", True), ("wrong", False), ("down", False)])
def test_only_right_pictures_count(name, good):
    load = loaded(name)
    assert load.asked > 0
    assert load.good.count == (load.asked if good else 0)
    assert (load.wrong > 0, load.unanswered > 0) == (name == "wrong", name == "down")


def test_an_ask_of_either_kind_has_what_is_counted():
    assert Ask._fields == GrpcAsk._fields


def test_the_gateway_is_held_round_by_round_against_the_better_direct_way():
    found = {
        DIRECT[0]: Found(4, 0.0, rates=[100, 50, 100], alone_ms=[10, 20, 10]),
        DIRECT[1]: Found(4, 0.0, rates=[80, 60, 100], alone_ms=[9, 21, 12]),
        RAW: Found(4, 0.0, rates=[95, 54, 85], alone_ms=[13, 22, 11]),
        PNG: Found(4, 0.0, rates=[1, 1, 1], alone_ms=[99, 99, 99], errors=2),
    }
    share, added, wrong = verdicts(found)
    assert (share.figure, added.figure) == (0.9, 2)
    assert (share.passed, added.passed, wrong.figure, wrong.passed) == (True, True, 2, False)


def test_a_direct_way_that_stalled_is_not_the_better_one_and_a_gateway_that_did_fails():
    stalled = Found(4, 0.0, rates=[0.0], alone_ms=[math.inf])
    right = Found(4, 0.0, rates=[50], alone_ms=[10])
    found = {DIRECT[0]: stalled, DIRECT[1]: right, RAW: Found(4, 0.0, [49], [12]), PNG: right}
    assert [one.figure for one in verdicts(found)] == [0.98, 2, 0]
    assert [one.passed for one in verdicts(found | {RAW: stalled})[:2]] == [False, False]
