"""Many callers in front of a real Triton: order, priorities, traces, and the same pictures."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from running_triton import running
from same_pictures import KEYS, compare, wishes, write_keys
from shipped_model import publish_into
from triton_gateway import body, gateway, ready_s

pytestmark = pytest.mark.triton

TRACE = "0af7651916cd43dd8448eb211c80319c"
PATIENT = 80  # pictures, so many that the urgent one comes in time on a slow machine too


@pytest.mark.parametrize("pictures", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_pictures_under_mixed_load_are_to_the_bit_those_asked_for_alone(
    server, publish_shapes, tmp_path: Path, pictures: int
) -> None:
    name = f"mixed{pictures}"
    publish_shapes(name, service_ms={1: 20.0, 2: 30.0, 4: 50.0})
    server.load(name)
    options = ["--keys", write_keys(tmp_path / "keys.toml"), "--max-queue", 1024]
    with gateway(server.repository, name, server.url, *options, "--triton-in-flight", 8) as client:
        ready_s(client)
        compared = compare(str(client.base_url), wishes(pictures))
    assert compared.wrong == []
    assert compared.right >= pictures
    assert compared.left >= pictures / 100
    (stats,) = server.client.get_inference_statistics(name).model_stats
    assert stats.execution_count < stats.inference_count


@pytest.mark.parametrize(("priorities", "in_flight"), [(0, 2), (2, 64)])
def test_an_urgent_picture_overtakes_patient_ones(
    server, publish_shapes, tmp_path: Path, priorities: int, in_flight: int
) -> None:
    """In the gateway, where the window is narrow; in Triton, where it is wide."""
    name = f"urgent{priorities}"
    publish_shapes(name, service_ms={1: 20.0, 2: 41.0}, priorities=priorities)
    server.load(name)
    options = ["--keys", write_keys(tmp_path / "keys.toml"), "--max-queue", 256]
    options += ["--triton-in-flight", in_flight]
    done: list[str] = []

    def ask(who: str, seed: int) -> None:
        headers = {"Authorization": f"Bearer {KEYS[who]}"}
        answer = client.post("/generate", json=body(seed), headers=headers)
        assert answer.status_code == 200, answer.text
        done.append(who)

    with (
        gateway(server.repository, name, server.url, *options) as client,
        ThreadPoolExecutor(PATIENT + 1) as pool,
    ):
        ready_s(client)
        asked = [pool.submit(ask, "dan", seed) for seed in range(PATIENT)]
        asked[0].result()
        asked.append(pool.submit(ask, "amy", PATIENT))
        for one in asked:
            one.result()
    assert done.index("amy") < 0.75 * PATIENT


class Collector(BaseHTTPRequestHandler):
    """Takes what Triton exports and keeps its bytes."""

    received: list[bytes]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server for spans, and what it was sent."""
    received: list[bytes] = []
    handler = type("Kept", (Collector,), {"received": received})
    with HTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{web.server_port}/v1/traces", received
        web.shutdown()
        thread.join()


def test_tritons_own_spans_belong_to_the_trace_of_the_request(environment, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_into(repository, "shapes")
    with collector() as (url, received):
        trace = ["level=TIMESTAMPS", "rate=1", "mode=opentelemetry", f"opentelemetry,url={url}"]
        options = [f"--trace-config={setting}" for setting in trace]
        with (
            running(repository, tmp_path / "log.txt", *options) as server,
            gateway(repository, "shapes", server.url) as client,
        ):
            ready_s(client)
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            assert client.post("/generate", json=body(1), headers=headers).status_code == 200
    assert any(TRACE.encode() in sent or bytes.fromhex(TRACE) in sent for sent in received)
