"""The micro-batcher with functions for a model, and the times that steer it."""

import asyncio
import threading

import numpy as np
import pytest

from serve.batcher import Batcher
from serve.errors import InferenceError
from serve.service_times import ServiceTimes

PAYS = ServiceTimes({1: 0.010, 2: 0.012, 4: 0.016})


class Model:
    """Picture i is i; a call can be held back, and fails on a row that says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, rows):
        self.go.wait(10)
        values = [int(row["i"]) for row in rows]
        self.batches.append(values)
        if -1 in values:
            raise ValueError("a row that this model cannot take")
        return [np.full((1, 1, 3), value, np.uint8) for value in values]


def feeds(i: int):
    return {"i": np.array(i)}


async def run(model: Model, times: ServiceTimes, scenario):
    batcher = Batcher(model, times)
    try:
        return await scenario(batcher)
    finally:
        model.go.set()
        await batcher.close()


async def hold(model: Model, batcher: Batcher, values):
    """Queue the first value alone, and the others while its call is held back."""
    model.go.clear()
    futures = [batcher.submit(feeds(values[0]))]
    await asyncio.sleep(0.02)
    futures += [batcher.submit(feeds(value)) for value in values[1:]]
    return futures


def test_an_idle_model_runs_one_picture_at_once_and_batches_what_came_meanwhile():
    model = Model()

    async def scenario(batcher):
        futures = await hold(model, batcher, range(8))
        model.go.set()
        return await asyncio.gather(*futures)

    done = asyncio.run(run(model, PAYS, scenario))
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6], [7]]
    assert [int(one.pixels[0, 0, 0]) for one in done] == list(range(8))
    assert done[1].queue_s > 0


def test_batches_that_do_not_pay_are_not_made():
    model = Model()

    async def scenario(batcher):
        futures = await hold(model, batcher, range(3))
        model.go.set()
        await asyncio.gather(*futures)

    asyncio.run(run(model, ServiceTimes({1: 0.01}), scenario))
    assert model.batches == [[0], [1], [2]]


def test_a_cancelled_picture_is_never_made():
    model = Model()

    async def scenario(batcher):
        futures = await hold(model, batcher, range(4))
        waited_s = batcher.wait_s(1)
        futures[1].cancel()
        futures[2].cancel()
        await asyncio.sleep(0)
        assert batcher.wait_s(1) < waited_s
        model.go.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    done = asyncio.run(run(model, PAYS, scenario))
    assert model.batches == [[0], [3]]
    assert isinstance(done[1], asyncio.CancelledError)


@pytest.mark.parametrize("value", [1, -1])
def test_a_picture_cancelled_while_it_is_made_does_not_disturb_its_batch(value):
    model = Model()

    async def scenario(batcher):
        (future,) = await hold(model, batcher, [value])
        future.cancel()
        model.go.set()
        return await batcher.submit(feeds(2))

    assert asyncio.run(run(model, PAYS, scenario)).pixels[0, 0, 0] == 2
    assert model.batches == [[value], [2]]


def test_a_failed_batch_fails_its_members_and_the_next_goes_on(caplog):
    model = Model()

    async def scenario(batcher):
        futures = await hold(model, batcher, [0, -1, 2, 3])
        model.go.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    done = asyncio.run(run(model, ServiceTimes({1: 0.1, 2: 0.1}), scenario))
    assert [isinstance(one, InferenceError) for one in done] == [False, True, True, False]
    assert isinstance(done[1].__cause__, ValueError)
    assert "a batch of 2 failed" in caplog.text


def test_the_wait_counts_the_running_call_the_queue_and_the_newcomer():
    model = Model()
    slow = ServiceTimes({1: 10.0, 2: 12.0})

    async def scenario(batcher):
        assert batcher.wait_s(1) == 10
        futures = await hold(model, batcher, range(3))
        waited_s = batcher.wait_s(1)
        for future in futures:
            future.cancel()
        return waited_s

    waited_s = asyncio.run(run(model, slow, scenario))
    assert 33 < waited_s <= 34  # what is left of 10, then a batch of 2 and one that may be filled


def test_closing_fails_what_waits_and_what_runs():
    model = Model()

    async def scenario(batcher):
        futures = await hold(model, batcher, range(3))
        await batcher.close()
        return await asyncio.gather(*futures, return_exceptions=True)

    done = asyncio.run(run(model, ServiceTimes({1: 0.1}), scenario))
    assert [str(one) for one in done] == ["the gateway has stopped"] * 3


@pytest.mark.parametrize(("waiting", "size"), [(1, 1), (2, 2), (3, 2), (4, 4), (99, 4)])
def test_the_largest_batch_that_pays_is_chosen(waiting, size):
    assert PAYS.batch(waiting) == size


def test_the_total_time_is_that_of_the_batches_that_will_run():
    assert PAYS.total_s(0) == 0
    assert PAYS.total_s(7) == pytest.approx(0.016 + 0.012 + 0.010)
