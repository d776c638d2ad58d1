"""Clients that misbehave, on a real gateway: they are let go of, and nobody else notices."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from gateway_process import IMPATIENT, SLOW_MODEL, gateway, until

RED = {"prompt": "a red circle", "seed": 1}


@pytest.fixture(scope="module")
def running(repository):
    """A gateway that waits 0.6 s for headers, 1 s for a body and 0.6 s for its answer's taking."""
    with gateway(repository, "--body-s", 1, prepare=IMPATIENT) as made:
        yield made


def request(body: dict, **headers: str) -> bytes:
    """POST /generate as it goes over the wire."""
    content = json.dumps(body).encode()
    fields = {"Host": "g", "Content-Type": "application/json", "Content-Length": str(len(content))}
    lines = [f"{name}: {value}\r\n" for name, value in (fields | headers).items()]
    return f"POST /generate HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + content


def connect(running, **options: int) -> socket.socket:
    made = socket.socket()
    for name, value in options.items():
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    made.settimeout(10)
    made.connect(("127.0.0.1", running.port))
    return made


def received(client: socket.socket) -> bytes:
    """All that comes until the gateway closes."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answered(client: socket.socket) -> tuple[int, dict]:
    """Status and problem of the one answer that comes before the gateway closes."""
    head, _, body = received(client).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, head
    problem = json.loads(body)
    assert problem["status"] == int(head.split()[1])
    return problem["status"], problem


def assert_others_are_served(running):
    assert httpx.post(f"{running.url}/generate", json=RED, timeout=5).status_code == 200


def test_headers_that_never_end_are_answered_with_408(running):
    start = time.monotonic()
    with connect(running) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: g\r\nX-More: ")
        assert_others_are_served(running)
        status, problem = answered(client)
    assert (status, problem["detail"]) == (408, "the headers took longer than 1 s")
    assert 0.5 < time.monotonic() - start < 5


def test_a_connection_that_says_nothing_is_closed(running):
    with connect(running) as client:
        assert received(client) == b""


@pytest.mark.parametrize("sent", ["a whole header", "a part of one", "the path"])
def test_headers_that_are_too_large_are_answered_with_431(running, sent):
    with connect(running) as client:
        if sent == "the path":
            client.sendall(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: g\r\n\r\n")
        elif sent == "a whole header":
            client.sendall(request(RED, **{"X-More": "a" * 40_000}))
        else:
            client.sendall(b"GET / HTTP/1.1\r\nX-More: ")
            for _ in range(5):
                time.sleep(0.02)
                client.sendall(b"a" * 8_000)
        status, problem = answered(client)
    assert status == 431
    assert problem["detail"].endswith("are too large, allowed are 32768 bytes")


def test_who_is_answered_before_there_is_a_request_is_found_in_the_log(running):
    with connect(running) as client:
        client.sendall(b"HELLO\r\n\r\n")
        _, problem = answered(client)
    facts = f"request_id={problem['request_id']} status=400 client=127.0.0.1 problem=bad-request"
    until(lambda: facts in running.log.read_text(), "the log does not know it")


def test_headers_that_are_just_not_too_large_are_read(running):
    assert httpx.get(f"{running.url}/livez", headers={"X-More": "a" * 30_000}).status_code == 200


@pytest.mark.parametrize("line", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n"])
def test_what_is_no_http_is_answered_with_400(running, line):
    with connect(running) as client:
        client.sendall(line)
        status, problem = answered(client)
    assert (status, problem["detail"]) == (400, "this is no HTTP/1.1 request")


def test_a_body_that_takes_too_long_is_answered_with_408(running):
    whole = request(RED)
    with connect(running) as client:
        client.sendall(whole[:-20])
        for byte in whole[-20:-10]:
            client.send(bytes([byte]))
            time.sleep(0.05)
        assert_others_are_served(running)
        status, problem = answered(client)
    assert status == 408
    assert problem["type"].endswith(":body-too-slow")
    assert problem["detail"].endswith("bytes of the body came in 1 s, but not its end")


def test_a_body_that_comes_byte_by_byte_in_time_is_answered(running):
    whole = request(RED, Connection="close")
    with connect(running) as client:
        for i in range(len(whole) - 30, len(whole)):
            client.send(whole[: i + 1] if i == len(whole) - 30 else whole[i : i + 1])
            time.sleep(0.01)
        assert received(client).startswith(b"HTTP/1.1 200 ")


def test_a_refused_body_that_is_still_being_sent_holds_no_connection(running):
    with connect(running) as client:
        client.sendall(request(RED, **{"Content-Length": "999999"}))
        status, problem = answered(client)
    assert (status, problem["type"].rpartition(":")[2]) == (413, "body-too-large")


def test_pipelined_requests_are_answered_in_their_order(running):
    seeds = list(range(100, 120))
    last = request(RED | {"seed": 120}, Connection="close")
    with connect(running) as client:
        client.sendall(b"".join(request(RED | {"seed": seed}) for seed in seeds) + last)
        answers = received(client)
    found = [line for line in answers.split(b"\r\n") if line.startswith(b"x-seed: ")]
    assert found == [b"x-seed: %d" % seed for seed in [*seeds, 120]]
    assert answers.count(b"HTTP/1.1 200 ") == 21


def test_who_does_not_take_answers_is_left_and_costs_little_memory(running):
    many = {"prompt": "a red circle", "num_images": 8, "format": "raw"}  # 131 kB in base64
    asked = b"".join(request(many | {"seed": seed}) for seed in range(60))
    assert_others_are_served(running)
    before = running.rss_bytes
    clients = [connect(running, SO_RCVBUF=4096) for _ in range(5)]
    for client in clients:
        client.sendall(asked)
    assert_others_are_served(running)
    until(lambda: connections(running) == 0, "they are still there")
    assert running.rss_bytes - before < 64e6
    for client in clients:
        client.close()


def connections(running) -> int:
    """Those that the gateway holds open, but for the one that listens."""
    found = psutil.Process(running.process.pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED for one in found)


def test_pictures_of_a_client_that_leaves_are_not_drawn(repository):
    with gateway(repository, prepare=SLOW_MODEL) as busy, ThreadPoolExecutor(1) as pool:

        def queued(least: int) -> None:
            depth = "singlepass_queue_depth"
            until(lambda: busy.metric(depth) >= least, f"fewer than {least} pictures are accepted")

        body = RED | {"num_images": 8}
        ahead = [pool.submit(httpx.post, f"{busy.url}/generate", json=body, timeout=30)]
        queued(8)
        with connect(busy) as client:
            client.sendall(request(body | {"seed": 50}))
            queued(16)  # of one caller, whose pictures are made in the order of their coming
        assert ahead[0].result().status_code == 200
        until(lambda: busy.metric("singlepass_queue_depth") == 0, "the queue is not empty")
        assert busy.metric("singlepass_cancelled_total") == 8
        assert busy.metric("singlepass_pictures_total") == 8
