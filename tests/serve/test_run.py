"""The gateway as a process: what it prints, and how it leaves."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_backend import FakeBackend
from tiny_repository import write_version

from serve.errors import RepositoryError, SettingsError
from serve.run import listen, run_gateway
from serve.settings import Settings

RED = {"prompt": "a red circle", "seed": 1}
HERE = Path(__file__).parent


@contextmanager
def process(repository: Path, release: Path, drain_s: float) -> Iterator[tuple]:
    """A gateway that holds its pictures until `release` exists, in a process, and its client."""
    command = [sys.executable, HERE / "slow_gateway.py", repository, release, str(drain_s)]
    env = os.environ | {"PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{HERE}"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as running:
        try:
            url = re.search(r"http://\S+", running.stdout.readline())[0]
            running.stdout.readline()
            with httpx.Client(base_url=url, timeout=30) as client:
                yield running, client
        finally:
            running.kill()


def signalled(running: subprocess.Popen, client: httpx.Client, pictures: int, pool):
    """Ask for pictures, wait until all are accepted, send SIGTERM, wait until it is noticed."""
    bodies = [RED | {"seed": seed} for seed in range(pictures)]  # equal ones would be one
    asked = [pool.submit(client.post, "/generate", json=body) for body in bodies]
    for _ in asked:
        assert running.stdout.readline() == "accepted\n"
    running.send_signal(signal.SIGTERM)
    while client.get("/readyz").status_code != 503:
        time.sleep(0.02)
    return asked


def test_sigterm_answers_what_was_accepted_and_nothing_new(repository, tmp_path):
    release = tmp_path / "release"
    with process(repository, release, 20) as (running, client), ThreadPoolExecutor(12) as pool:
        accepted = signalled(running, client, 12, pool)
        refused, alive = client.post("/generate", json=RED), client.get("/livez")
        release.touch()
        assert [one.result().status_code for one in accepted] == [200] * 12
        assert running.wait(10) == 0
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert alive.status_code == 200


def test_a_drain_that_takes_too_long_is_ended_and_reported(repository, tmp_path):
    never = tmp_path / "never"
    with process(repository, never, 0.5) as (running, client), ThreadPoolExecutor(1) as pool:
        (asked,) = signalled(running, client, 1, pool)
        assert running.wait(10) == 1
        assert asked.result().status_code == 503
        assert "stops before this could be answered" in asked.result().json()["detail"]


def test_a_second_signal_ends_the_process_at_once(repository, tmp_path):
    never = tmp_path / "never"
    with process(repository, never, 60) as (running, client), ThreadPoolExecutor(1) as pool:
        (asked,) = signalled(running, client, 1, pool)
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 1
        assert asked.result().status_code == 503


def serve_here(settings: Settings, visit, backend=None) -> int:
    """Run the gateway in this thread; `visit` runs beside it, then SIGTERM ends it."""

    def visitor() -> None:
        url = f"http://127.0.0.1:{settings.port}"
        for _ in range(100):
            try:
                httpx.get(f"{url}/readyz").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        try:
            visit(url)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    beside = threading.Thread(target=visitor)
    beside.start()
    status = run_gateway(settings, backend)
    beside.join()
    return status


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_curl_line_makes_a_picture(settings, free_port, capsys, tmp_path):
    visits = []

    def visit(url):
        line = capsys.readouterr().out.splitlines()[1]
        visits.append(subprocess.run(shlex.split(line), cwd=tmp_path, check=False).returncode)

    assert serve_here(settings.model_copy(update={"port": free_port}), visit) == 0
    assert visits == [0]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_every_model_is_named_once_the_gateway_listens(settings, free_port, capsys, tmp_path):
    for name in ("one", "two"):
        write_version(tmp_path, name)
    changes = {"port": free_port, "repository": tmp_path}
    assert serve_here(settings.model_copy(update=changes), lambda url: None) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"serving one/1 (64x64), two/1 (64x64) on http://127.0.0.1:{free_port}"


def test_what_the_drain_leaves_behind_is_refused_and_told_by_the_status(settings, free_port):
    async def never(feeds):
        await asyncio.Event().wait()

    backend, answers = FakeBackend(never), []

    def visit(url):
        asked = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/generate", json=RED, timeout=20))
        )
        asked.start()
        waiting.append(asked)
        while not backend.pending:
            time.sleep(0.01)

    waiting: list[threading.Thread] = []
    changes = {"port": free_port, "drain_s": 0.2}
    assert serve_here(settings.model_copy(update=changes), visit, backend) == 1
    waiting[0].join()
    assert [answer.status_code for answer in answers] == [503]


def test_a_port_in_use_is_one_sentence(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"host 127.0.0.1, port {port}: Address already in"):
            run_gateway(settings.model_copy(update={"port": port}))


def test_a_missing_repository_ends_the_process_with_a_sentence(settings, tmp_path):
    missing = settings.model_copy(update={"repository": tmp_path / "no", "port": 0})
    with pytest.raises(RepositoryError, match="no is not a folder"):
        run_gateway(missing)


def test_the_gateway_loads_no_training_library():
    code = "import sys, serve.run; print(*{name.partition('.')[0] for name in sys.modules})"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    training = {"torch", "diffusers", "transformers", "onnx", "safetensors", "accelerate"}
    assert not training & set(listed.stdout.split())


def test_an_answer_does_not_wait_for_an_acknowledgement():
    seen = []

    async def scenario():
        def accepted(reader, writer):
            accepted_socket = writer.get_extra_info("socket")
            seen.append(accepted_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(Settings(port=0)) as listener:
            async with await asyncio.start_server(accepted, sock=listener):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                await reader.read()
                writer.close()

    asyncio.run(scenario())
    assert seen == [1]
