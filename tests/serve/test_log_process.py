"""The log of a real gateway process, where it can be written and where it cannot."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent
RED = {"prompt": "a red circle", "seed": 5}
GATEWAY = """
import sys
from pathlib import Path
from fake_backend import FakeBackend
from serve.run import run_gateway
from serve.settings import Settings
settings = Settings(repository=Path(sys.argv[1]), port=0, drain_s=5, log_format="json")
sys.exit(run_gateway(settings, FakeBackend()))
"""


@contextmanager
def gateway(repository: Path, stderr: int) -> Iterator[httpx.Client]:
    """A gateway that logs JSON to `stderr`; afterwards it must drain and leave with status 0."""
    env = os.environ | {"PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{HERE}"}
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, repository],
        env=env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as running:
        try:
            url = re.search(r"http://\S+", running.stdout.readline())[0]
            with httpx.Client(base_url=url, timeout=10) as client:
                yield client
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0
        finally:
            running.kill()


def asked(client: httpx.Client, count: int) -> list[int]:
    """Statuses of pictures, lists and errors in turn."""
    paths = [("POST", "/generate", RED), ("GET", "/v1/models", None), ("GET", "/no", None)]
    return [
        client.request(method, path, json=body).status_code
        for _ in range(count)
        for method, path, body in paths
    ]


def test_every_line_is_one_object_and_each_request_has_one(repository, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file, gateway(repository, file.fileno()) as client:
        answer = client.post("/generate", json=RED, headers={"X-Request-ID": "job-7"})
        assert client.get("/livez").status_code == 200
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"serve.run", "serve.access_log"} <= {line["logger"] for line in lines}
    (line,) = [line for line in lines if line["logger"] == "serve.access_log"]
    assert (line["request_id"], line["model"], line["seed"]) == ("job-7", "tiny/1", 5)
    assert line["bytes"] == len(answer.content)
    assert {"queue_ms", "tokenize_ms", "infer_ms", "encode_ms", "caller"} <= line.keys()
    assert "red circle" not in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_changes_no_answer(repository):
    with open("/dev/full", "wb") as full, gateway(repository, full.fileno()) as client:  # noqa: PTH123
        assert asked(client, 30) == [200, 200, 404] * 30


def test_a_closed_pipe_changes_no_answer(repository):
    reading, writing = os.pipe()
    os.close(reading)
    with closing(os.fdopen(writing, "wb")), gateway(repository, writing) as client:
        assert asked(client, 30) == [200, 200, 404] * 30


def test_a_reader_that_stops_changes_no_answer_and_gets_whole_lines(repository):
    reading, writing = os.pipe()
    with closing(os.fdopen(reading, "rb")) as reader:
        with closing(os.fdopen(writing, "wb")), gateway(repository, writing) as client:
            assert asked(client, 100) == [200, 200, 404] * 100
            found = b""
            while select.select([reading], [], [], 0)[0]:
                found += os.read(reading, 65536)
            client.get("/v1/models")
        lines = [json.loads(line) for line in (found + reader.read()).splitlines()]
    lost = [line["message"] for line in lines if line["logger"] == "serve.logs"]
    assert len(lines) < 300
    assert re.fullmatch(r"\d+ lines could not be written and are lost", lost[0])
