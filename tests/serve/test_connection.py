"""The connection's limits in this process, with an application of ten lines behind it."""

import asyncio
import json

import pytest
import uvicorn

from serve import connection
from serve.connection import Connection

LARGE = b"x" * 30_000_000


async def app(scope, receive, send):
    """/large answers 30 MB, /early before the body has come, others after it and late."""
    path = scope["path"]
    if path != "/early":
        while (await receive()).get("more_body"):
            pass
    if path == "/late":
        await asyncio.sleep(0.5)
    content = LARGE if path == "/large" else b"ok"
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def talk(scenario):
    """The result of a scenario that is given a function to connect with, and the server."""

    async def run():
        server = uvicorn.Server(
            uvicorn.Config(app, http=Connection, lifespan="off", log_config=None, port=0, ws="none")
        )
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        writers = []

        async def connect():
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
            writers.append(writer)
            return reader, writer

        try:
            return await asyncio.wait_for(scenario(connect, server), 10)
        finally:
            for writer in writers:
                writer.close()
            server.should_exit = True
            await serving

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    monkeypatch.setattr(connection, "TAKE_S", 0.2)
    monkeypatch.setattr(connection, "LINGER_S", 0.1)


def said(*parts: bytes, pause_s: float = 0.0):
    """What the gateway answers, until it closes, to a client that sends these parts."""

    async def scenario(connect, server):
        reader, writer = await connect()
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        return await reader.read()

    return talk(scenario)


def status_of(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head
    assert json.loads(body)["status"] == int(head.split()[1])
    return int(head.split()[1])


def test_silence_is_closed_without_a_word():
    assert said() == b""


def test_headers_without_an_end_are_408():
    assert status_of(said(b"GET / HTTP/1.1\r\nHost: a\r\n")) == 408


@pytest.mark.parametrize("more", [b"/" + b"a" * 40_000, b"/ HTTP/1.1\r\nA: " + b"a" * 40_000])
def test_a_head_that_is_too_large_is_431(more):
    assert status_of(said(b"GET " + more + b"\r\n\r\n")) == 431


def test_a_header_that_grows_beyond_the_limit_is_431():
    assert status_of(said(b"GET / HTTP/1.1\r\nA: ", *[b"a" * 9_000] * 4, pause_s=0.01)) == 431


def test_what_is_no_request_is_400():
    assert status_of(said(b"\x16\x03\x01")) == 400


def test_an_answer_that_takes_its_time_is_not_cut_short_by_headers_behind_it():
    answer = said(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HT", pause_s=0.05)
    first, _, rest = answer.partition(b"ok")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert status_of(rest) == 408


def test_a_body_that_nobody_reads_any_more_is_not_waited_for():
    answer = said(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", [b"/early", b"/late"])
def test_a_body_that_ends_late_leaves_the_connection_for_the_next_request(path):
    request = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"

    async def scenario(connect, server):
        reader, writer = await connect()
        if path == b"/late":  # its answer ends while the body of the next one is on its way
            writer.write(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
        writer.write(request % b"/early")
        await reader.readuntil(b"ok")
        await asyncio.sleep(0.05)
        writer.write(b"defghij")
        if path == b"/late":
            await reader.readuntil(b"ok")
        await asyncio.sleep(0.15)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return await reader.readuntil(b"ok")

    assert talk(scenario).startswith(b"HTTP/1.1 200 ")


def test_several_requests_on_one_connection_each_have_their_time_for_headers():
    async def scenario(connect, server):
        reader, writer = await connect()
        for _ in range(3):
            await asyncio.sleep(0.15)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"ok")
        return True

    assert talk(scenario)


def test_who_takes_nothing_is_aborted_and_who_takes_slowly_gets_all(monkeypatch):
    monkeypatch.setattr(connection, "TAKE_BYTES", 1_000_000)

    async def scenario(connect, server):
        stuck_reader, stuck = await connect()
        slow_reader, slow = await connect()
        stuck_reader._transport.pause_reading()
        for writer in (stuck, slow):
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        taken = 0
        while taken < len(LARGE):
            taken += len(await slow_reader.read(500_000))
            await asyncio.sleep(0.01)
        left = len(server.server_state.connections)
        stuck_reader._transport.resume_reading()
        return left, await rest(stuck_reader)

    left, taken = talk(scenario)
    assert left == 1
    assert taken < len(LARGE)


async def rest(reader: asyncio.StreamReader) -> int:
    """How many bytes come before the end, whatever end that is."""
    taken = 0
    try:
        while part := await reader.read(1_000_000):
            taken += len(part)
    except ConnectionResetError:
        pass
    return taken


def test_a_connection_that_was_used_stays_open_for_the_next_request_for_a_while(monkeypatch):
    monkeypatch.setattr(connection, "IDLE_S", 1.0)

    async def scenario(connect, server):
        reader, writer = await connect()
        for pause_s in (0.6, 0.0):  # longer than a new connection may say nothing
            writer.write(b"GET /late HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(pause_s)
        began = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        return asyncio.get_running_loop().time() - began

    assert 0.8 < talk(scenario) < 3
