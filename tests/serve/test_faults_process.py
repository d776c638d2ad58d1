"""What befalls the process itself while it serves a real model: no answer is lost or wrong."""

import asyncio
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from gateway_process import ROOT, SLOW_MODEL, gateway, until
from tiny_repository import write_version

from serve.backend_ort import OrtBackend
from serve.keys import make_key
from serve.model import Model

RED = {"prompt": "a red circle", "seed": 1, "format": "raw"}
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
# Sets the wall clock of this process by as much as a file says; other clocks go on as they do.
SHIFTED = """
import os, time
from pathlib import Path
wall = time.time
time.time = lambda: wall() + float(Path(os.environ["SHIFT"]).read_text())
"""


class Asked(NamedTuple):
    """One request: when it was sent, its seed, and the answer, or None where none came."""

    sent: float
    seed: int
    answer: httpx.Response | None


def ask_without_end(url: str, first_seed: int, stop: threading.Event, asked: list[Asked]) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        for seed in range(first_seed, first_seed + 10_000):
            if stop.is_set():
                return
            sent = time.monotonic()
            try:
                answer = client.post("/generate", json=RED | {"seed": seed})
            except httpx.TransportError:
                answer = None
            asked.append(Asked(sent, seed, answer))


def under_load(url: str, clients: int, during: Callable[[list[Asked]], None]) -> list[Asked]:
    """What so many clients were answered, who ask without end until `during` has returned.

    It is given the answers as they come.
    """
    stop, asked = threading.Event(), list[Asked]()
    threads = [
        threading.Thread(target=ask_without_end, args=(url, 100_000 * i, stop, asked))
        for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        during(asked)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return asked


def pictures_alone(model: Model, seeds: list[int]) -> dict[int, bytes]:
    """The pixels of these seeds, each drawn alone."""
    backend = OrtBackend(model, 1, measure_s=0)
    asyncio.run(backend.start())
    ids = model.tokenize(RED["prompt"])
    return {seed: backend.run([{**ids, "noise": model.noise(seed)}])[0].tobytes() for seed in seeds}


def test_sigterm_under_load_loses_nothing_that_was_sent_before(repository, model):
    with gateway(repository, prepare=SLOW_MODEL) as running:
        signalled: list[float] = []

        def stop_it(asked: list[Asked]) -> None:
            while len(asked) < 16:
                time.sleep(0.01)
            signalled.append(time.monotonic())
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(20) == 0

        asked = under_load(running.url, 8, stop_it)
    before = [one for one in asked if one.sent < signalled[0] - 0.05]
    assert len(before) >= 16
    assert {one.answer and one.answer.status_code for one in before} == {200}
    expected = pictures_alone(model, [one.seed for one in before])
    assert all(one.answer.content == expected[one.seed] for one in before)
    refused = [one.answer for one in asked if one.answer and one.answer.status_code != 200]
    assert all((one.status_code, one.headers["retry-after"]) == (503, "1") for one in refused)


def test_a_broken_version_under_load_leaves_the_old_one_and_a_whole_one_replaces_it(
    repository, tmp_path
):
    root = tmp_path / "repository"
    shutil.copytree(repository, root)
    with gateway(root, "--reload-s", 0.1) as running:

        def publish(asked: list[Asked]) -> None:
            while not asked:
                time.sleep(0.01)
            broken = write_version(tmp_path / "broken", version=2)
            (broken / "model.onnx").write_bytes(b"half a graph")
            broken.rename(root / "tiny" / "2")
            ready = f"{running.url}/readyz"
            until(lambda: "tiny/2 is refused" in httpx.get(ready).text, "it is not refused")
            write_version(tmp_path / "whole", version=3).rename(root / "tiny" / "3")
            with httpx.Client(base_url=running.url) as client:
                served(client, 3)
            time.sleep(0.2)

        asked = under_load(running.url, 3, publish)
    answers = [one.answer for one in asked]
    assert {one and one.status_code for one in answers} == {200}
    assert {one.headers["x-model"] for one in answers} == {"tiny/1", "tiny/3"}


def test_clocks_that_jump_change_nothing(repository, tmp_path):
    shift = tmp_path / "shift"
    shift.write_text("0")
    jump_and_serve(repository, tmp_path, shift, prepare=SHIFTED, env={"SHIFT": str(shift)})


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's libfaketime")
def test_clocks_that_jump_for_every_library_change_nothing(repository, tmp_path):
    shift = tmp_path / "shift"
    shift.write_text("+0s")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(shift),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    jump_and_serve(repository, tmp_path, shift, env=env, unit="s")


def jump_and_serve(
    repository: Path, tmp_path: Path, shift: Path, unit: str = "", **gateway_options: object
) -> None:
    """Pictures, deadlines, rates and new versions go on while the clock leaps a day each way."""
    root, (key, lines) = tmp_path / "repository", make_key("a")
    shutil.copytree(repository, root)
    (tmp_path / "keys").write_text(f'{lines}rate = "4/hour"\n')
    options = ("--reload-s", 0.1, "--keys", tmp_path / "keys")
    with gateway(root, *options, **gateway_options) as running:
        bearer = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=running.url, timeout=10, headers=bearer) as client:
            first = ask(client, deadline_ms=3000)
            for version, leap in ((2, 86_400), (3, -86_400)):
                shift.write_text(f"{leap:+d}{unit}")
                leapt(client, leap)
                again = ask(client, deadline_ms=3000)
                assert (again.status_code, again.content) == (200, first.content)
                written = write_version(tmp_path / f"new{version}", version=version)
                written.rename(root / "tiny" / str(version))
                served(client, version)
                rate_holds(client)
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert time.monotonic() - start < 5


def ask(client: httpx.Client, deadline_ms: int) -> httpx.Response:
    return client.post("/generate", json=RED, headers={"X-Deadline-Ms": str(deadline_ms)})


def rate_holds(client: httpx.Client) -> None:
    """No more pictures than the key may have, and nobody is shut out for longer than two hours."""
    answers = [ask(client, deadline_ms=3000) for _ in range(4)]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert 0 < int(answers[-1].headers["retry-after"]) <= 7200


def leapt(client: httpx.Client, leap_s: float) -> None:
    """Until the gateway's own clock shows another day."""
    day = time.strftime("%d %b %Y", time.gmtime(time.time() + leap_s))
    until(lambda: day in client.get("/livez").headers["date"], "the clock has not leapt")


def served(client: httpx.Client, version: int) -> None:
    """Until that version answers."""

    def answers() -> bool:
        return client.get("/v1/models").json()["data"][0]["version"] == version

    until(answers, f"version {version} is not served")


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def test_more_connections_than_descriptors_are_survived(repository):
    with gateway(repository, preexec_fn=few_descriptors) as running:
        address = ("127.0.0.1", running.port)
        crowd = [socket.create_connection(address, 5) for _ in range(100)]
        time.sleep(0.3)
        for one in crowd:
            one.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                answer = httpx.post(f"{running.url}/generate", json=RED, timeout=2)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "it does not recover"
                time.sleep(0.05)
        assert answer.status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_what_it_prints_does_not_keep_it_from_serving(repository, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "singlepass", "serve", "--repository", str(repository)]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=full, stderr=full, cwd=ROOT
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 15
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    answer = client.post("/generate", json=RED)
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            assert process.poll() is None, "it has ended"
            assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
