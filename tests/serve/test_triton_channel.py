"""Several servers behind one name: gRPC's own round robin, on real gRPC and real DNS."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from replicas import replicas

from serve import backend_triton, trace_context
from serve.backend_triton import TritonBackend
from serve.errors import NotReadyError
from serve.triton_channel import TritonChannel

HOSTS = ["127.0.0.1", "127.0.0.2"]


@asynccontextmanager
async def opened(model):
    """Two servers and a back end that knows them by one name; both are connected."""
    async with replicas(model, HOSTS) as (servers, target):
        backend = TritonBackend(model, "triton.test", connect=lambda _: TritonChannel(target))
        await backend.start()
        while not all(server.asked for server in servers):
            await draw(backend, model, 1)
        for server in servers:
            server.asked = 0
        yield backend, servers
        await backend.close()


async def draw(backend, model, pictures):
    """One after the other: which server drew each, by its shade."""
    feeds = {**model.tokenize("a"), "noise": model.noise(1)}
    return [(await backend.infer(feeds, 5.0)).pixels[0, 0, 0] - 100 for _ in range(pictures)]


def test_pictures_go_to_the_servers_in_turn(model):
    async def scenario():
        async with opened(model) as (backend, _):
            return await draw(backend, model, 20)

    drawn = asyncio.run(scenario())
    assert 8 <= sum(drawn) <= 12


def test_a_picture_that_one_server_refuses_is_drawn_by_another(model, monkeypatch):
    monkeypatch.setattr(backend_triton, "POLL_S", 60)  # nothing else takes a turn

    async def scenario():
        async with opened(model) as (backend, servers):
            servers[1].failing = True
            return await draw(backend, model, 30), servers[1].asked

    drawn, refused = asyncio.run(scenario())
    assert drawn == [0] * 30
    assert refused >= 10


def test_a_server_that_leaves_costs_no_picture_and_the_last_one_is_503(model):
    async def scenario():
        async with opened(model) as (backend, servers):
            await servers[0].server.stop(None)
            drawn = await draw(backend, model, 6)
            await servers[1].server.stop(None)
            with pytest.raises(NotReadyError):
                await draw(backend, model, 1)
            return drawn

    assert asyncio.run(scenario()) == [1] * 6


def test_the_trace_that_a_request_belongs_to_goes_along(model):
    trace = trace_context.TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "01")

    async def asked(context):
        trace_context.enter(context)
        async with replicas(model, HOSTS[:1]) as ((server,), target):
            backend = TritonBackend(model, "triton.test", connect=lambda _: TritonChannel(target))
            await backend.start()
            await draw(backend, model, 1)
            await backend.close()
            return server.metadata

    metadata = asyncio.run(asked(trace._replace(state="vendor=1")))
    assert metadata["traceparent"] == f"00-{trace.trace_id}-{trace.span_id}-01"
    assert metadata["tracestate"] == "vendor=1"
    assert "tracestate" not in asyncio.run(asked(trace))
    assert "traceparent" not in asyncio.run(asked(None))
