"""New versions in a real gateway process, under load over real connections."""

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from gateway_process import gateway, until
from reloading import draw, on
from tiny_repository import pin, write_version

SEEDS = range(8)
# A second version takes 30 s, as an engine that is built does.
SLOW_TO_OPEN = """
import sys, time
from serve.session import open_session
from serve import backend_ort
def slowly(model, *rest):
    if model.manifest.version == 2:
        print("opening", file=sys.stderr, flush=True)
        time.sleep(30)
    return open_session(model, *rest)
backend_ort.open_session = slowly
"""


def hashes(root) -> dict[tuple[str, int], str]:
    """The picture's SHA-256 by model and seed, from a gateway of its own."""

    async def each(client, repository):
        made = [await draw(client, seed=seed) for seed in SEEDS]
        return {(one.headers["x-model"], int(one.headers["x-seed"])): digest(one) for one in made}

    return on(root, each)


def digest(answer: httpx.Response) -> str:
    return hashlib.sha256(answer.content).hexdigest()


@contextmanager
def asked_all_the_time(url: str) -> Iterator[list[httpx.Response]]:
    """The answers to four clients that ask without a pause."""
    answers: list[httpx.Response] = []
    enough = threading.Event()

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=20) as client:
            seed = first
            while not enough.is_set():
                body = {"prompt": "a red circle", "seed": seed % len(SEEDS)}
                answers.append(client.post("/generate", json=body))
                seed += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, first) for first in range(4)]
        try:
            yield answers
        finally:
            enough.set()
        for one in asking:
            one.result()


def wait_for(url: str, label: str) -> None:
    """Until the gateway serves this version."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if httpx.get(f"{url}/v1/models/{label}").status_code == 200:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{label} is not served")


def test_versions_come_and_go_under_load_and_no_answer_is_lost_or_mixed(tmp_path):
    root, coming = tmp_path / "repository", tmp_path / "coming"
    write_version(root, max_batch=1)  # in a batch these small graphs may differ in one level
    expected = hashes(root)
    second = write_version(coming, version=2, weights=2, max_batch=1)
    expected |= hashes(coming)
    with gateway(root, "--reload-s", 0.1) as running, asked_all_the_time(running.url) as answers:
        second.rename(root / "tiny" / "2")
        wait_for(running.url, "tiny/2")
        (root / "tiny" / "3").mkdir()  # with nothing in it
        time.sleep(0.5)
        ready = httpx.get(f"{running.url}/readyz").text
        pin(root, "1")
        wait_for(running.url, "tiny/1")
        time.sleep(0.2)
    assert {answer.status_code for answer in answers} == {200}
    labels = [answer.headers["x-model"] for answer in answers]
    assert {*labels} == {"tiny/1", "tiny/2"}
    assert all(
        digest(one) == expected[one.headers["x-model"], int(one.headers["x-seed"])]
        for one in answers
    )
    assert ready.startswith("ready\ntiny/3 is refused: ")


def test_a_process_stops_cleanly_while_it_follows_its_repository(tmp_path):
    write_version(tmp_path)
    write_version(tmp_path, version=2)
    with gateway(tmp_path, "--reload-s", 0.01, "--drain-s", 5) as running:
        pin(tmp_path, "1")
        running.process.send_signal(signal.SIGTERM)
        status = running.process.wait(30)
        log = running.log.read_text()
    assert (status, "Traceback" in log) == (0, False), log


def test_a_version_that_is_being_opened_does_not_hold_up_the_end(tmp_path):
    root = tmp_path / "repository"
    write_version(root)
    with gateway(root, "--reload-s", 0.1, prepare=SLOW_TO_OPEN) as running:
        write_version(tmp_path, version=2).rename(root / "tiny" / "2")
        until(lambda: "opening" in running.log.read_text(), "it does not look")
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert time.monotonic() - start < 5
