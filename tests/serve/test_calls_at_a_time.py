"""Several calls of one model at a time: how many, what is foretold of them, that all are used."""

import asyncio
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from tiny_repository import write_version

from serve import backend_ort
from serve.backend_ort import OrtBackend
from serve.batcher import Batcher
from serve.machine import Machine
from serve.model import load_model
from serve.service_times import ServiceTimes
from serve.turn import USUAL

TWO = ServiceTimes({1: 0.010, 4: 0.020}, calls=2)


def feeds(i: int):
    return {"i": np.array(i)}


class Model:
    """Each call waits until it is let go; `running` counts those that do."""

    def __init__(self) -> None:
        self.running = 0
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, rows):
        self.running += 1
        self.batches.append([int(row["i"]) for row in rows])
        self.go.wait(10)
        self.running -= 1
        return [np.zeros((1, 1, 3), np.uint8)] * len(rows)


def with_batcher(times, scenario):
    async def run():
        model = Model()
        batcher = Batcher(model, times)
        try:
            return await scenario(model, batcher)
        finally:
            model.go.set()
            await batcher.close()

    return asyncio.run(run())


def test_two_calls_run_beside_each_other_and_what_comes_then_waits():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds(0))]
        await asyncio.sleep(0.01)
        assert batcher.wait_s(1) == pytest.approx(0.010)  # one call is free
        futures += [batcher.submit(feeds(i)) for i in range(1, 4)]
        async with asyncio.timeout(10):
            while model.running < 2:
                await asyncio.sleep(0.001)
        waiting = batcher.waiting
        model.go.set()
        await asyncio.gather(*futures)
        return waiting, model.batches[0]

    assert with_batcher(ServiceTimes({1: 0.010}, calls=2), scenario) == (2, [0])


def test_what_waits_is_shared_out_among_the_calls():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds(i)) for i in range(2)]
        await asyncio.sleep(0.02)
        futures += [batcher.submit(feeds(i)) for i in range(2, 6)]
        model.go.set()
        await asyncio.gather(*futures)
        return sorted(model.batches)

    times = ServiceTimes({1: 0.010, 2: 0.012, 4: 0.020}, calls=2)
    assert with_batcher(times, scenario) == [[0], [1], [2, 3], [4], [5]]


def test_the_other_call_goes_on_while_one_is_cancelled():
    async def scenario(model, batcher):
        gone, kept = batcher.submit(feeds(0)), batcher.submit(feeds(1))
        await asyncio.sleep(0.02)
        gone.cancel()
        last = batcher.submit(feeds(2))
        model.go.set()
        return len(await asyncio.gather(kept, last))

    assert with_batcher(ServiceTimes({1: 0.010}, calls=2), scenario) == 2


def test_a_wait_is_that_of_all_calls_together_and_seldom_too_short():
    assert TWO.total_s(1) == pytest.approx(0.010)
    assert TWO.total_s(4) == pytest.approx(0.020)
    assert TWO.total_s(16) == pytest.approx(0.040 + 0.010)  # 4 calls on 2 take 0.040 at least
    assert TWO.wait_s(1, 0, 0, busy=False) == pytest.approx(0.010)
    for waiting in range(40):
        alone = ServiceTimes(TWO.seconds).total_s(waiting)
        assert alone / 2 - 1e-9 <= TWO.total_s(waiting) <= alone + 1e-9


@pytest.fixture
def model(tmp_path):
    write_version(tmp_path, "tiny")
    return load_model(tmp_path)


def divided(model, monkeypatch, cores: int, seconds, changed: int | None = None) -> tuple[int, int]:
    """Calls at a time, and threads of each; `seconds(calls)` is what one takes."""
    opened = []

    def open_session(model, threads, device):
        opened.append(threads)
        return threads

    class Timed:
        def __init__(self, run, executor, calls, alone):
            self.calls = calls

        def fastest(self, rows, long_s):
            return [np.full(3, self.calls == changed)], seconds(self.calls)

    monkeypatch.setattr(backend_ort, "open_session", open_session)
    monkeypatch.setattr(backend_ort, "TimedCalls", Timed)
    backend = OrtBackend(model, machine=Machine(cores))
    backend._session = cores
    return backend._divided([feeds(0)], nullcontext), backend._session


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda calls: 0.010, (8, 1)),  # threads that wait for each other
        (lambda calls: 0.010 * calls, (1, 8)),  # threads that are all used
        (lambda calls: 0.010 if calls <= 2 else 0.020, (2, 4)),
        (lambda calls: 0.2 / calls, (1, 8)),  # a long call has all the cores
    ],
)
def test_threads_are_divided_as_long_as_that_gains(model, monkeypatch, seconds, expected):
    assert divided(model, monkeypatch, 8, seconds) == expected


def test_a_division_that_changes_the_pictures_is_not_made(model, monkeypatch, caplog):
    found = divided(model, monkeypatch, 8, lambda calls: 0.010, changed=4)
    assert found == (2, 4)
    assert "4 calls at a time change the pictures" in caplog.text


def test_a_real_graph_gives_the_same_pictures_with_two_calls_at_a_time(model):
    async def draw(calls: int):
        backend = OrtBackend(model, threads=calls, measure_s=0.2)
        await backend.start()
        rows = [{**model.tokenize("red"), "noise": model.noise(seed)} for seed in range(12)]
        try:
            assert backend.wait_s(1, USUAL) > 0
            return [one.pixels for one in await asyncio.gather(*map(backend.infer, rows))]
        finally:
            await backend.close()

    alone, together = asyncio.run(draw(1)), asyncio.run(draw(2))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
