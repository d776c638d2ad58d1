"""The micro-batcher among several callers: fair order, deadlines that others spoil, figures."""

import asyncio
import threading
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.batcher import Batcher
from serve.errors import DeadlineError
from serve.metrics import Metrics
from serve.service_times import ServiceTimes
from serve.turn import Turn

ONE = ServiceTimes({1: 0.001})
FOUR = ServiceTimes({1: 0.001, 4: 0.002})


class Model:
    """Each picture is its row's name; a call can be held back."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, rows):
        self.go.wait(10)
        self.batches.append([str(row["name"]) for row in rows])
        return [np.zeros((1, 1, 3), np.uint8)] * len(rows)


def feeds(name: str, size: int = 1):
    return {"name": np.array(name), "noise": np.zeros(size)}


def while_held(times, scenario):
    """The result of `scenario(model, batcher)`, whose first picture, "first", is in work."""

    async def run():
        model, metrics = Model(), Metrics("test")
        batcher = Batcher(model, times, metrics=metrics.model("m"))
        first = batcher.submit(feeds("first"), turn=Turn("nobody"))
        await asyncio.sleep(0.02)
        try:
            return await scenario(model, batcher), model.batches, samples(metrics)
        finally:
            model.go.set()
            await first
            await batcher.close()

    return asyncio.run(run())


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """What a scrape finds, by name and labels but for the model's."""
    text = metrics.text()[0].decode()
    return {
        (sample.name, *(v for k, v in sample.labels.items() if k != "model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def all_of(model, futures):
    model.go.set()
    return await asyncio.gather(*futures, return_exceptions=True)


def test_batches_are_formed_in_the_callers_fair_order():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds(f"flood{i}"), turn=Turn("flood")) for i in range(9)]
        futures += [batcher.submit(feeds(f"light{i}"), turn=Turn("light")) for i in range(2)]
        await all_of(model, futures)

    _, batches, _ = while_held(FOUR, scenario)
    assert batches[:2] == [["first"], ["flood0", "light0", "flood1", "light1"]]


def test_batch_work_lets_interactive_work_pass_and_is_done_all_the_same():
    async def scenario(model, batcher):
        night, day = Turn("a", "batch"), Turn("a")
        futures = [batcher.submit(feeds(f"night{i}"), turn=night) for i in range(3)]
        futures += [batcher.submit(feeds(f"day{i}"), turn=day) for i in range(17)]
        await all_of(model, futures)

    _, batches, _ = while_held(ONE, scenario)
    order = [name for (name,) in batches[1:]]
    assert [order.index(f"night{i}") for i in range(3)] in ([0, 9, 18], [1, 10, 19], [1, 9, 18])
    assert len(order) == 20


def test_pictures_of_another_size_keep_their_places():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds(name, len(name)), turn=Turn("a")) for name in "abcd"]
        futures.insert(1, batcher.submit(feeds("wide", 9), turn=Turn("b")))
        await all_of(model, futures)

    _, batches, _ = while_held(FOUR, scenario)
    assert batches == [["first"], ["a", "b", "c", "d"], ["wide"]]


def test_a_picture_that_others_made_late_is_refused_and_not_drawn():
    times = ServiceTimes({1: 0.2})

    async def scenario(model, batcher):
        late = batcher.submit(feeds("late"), within_s=0.21, turn=Turn("a"))
        kept = batcher.submit(feeds("kept"), within_s=60, turn=Turn("a"))
        await asyncio.sleep(0.05)
        return await all_of(model, [late, kept])

    (late, kept), batches, _ = while_held(times, scenario)
    assert isinstance(late, DeadlineError)
    assert str(late).startswith("others went before it: ")
    assert str(late).endswith(" the model takes 200 ms, the deadline is 210 ms")
    assert late.retry_after_s >= 0
    assert kept.pixels.shape == (1, 1, 3)
    assert batches == [["first"], ["kept"]]


def test_the_last_of_a_queue_may_be_dropped():
    async def scenario(model, batcher):
        (late,) = await all_of(model, [batcher.submit(feeds("late"), within_s=0.0)])
        again = await batcher.submit(feeds("again"))
        return late, again, batcher.waiting

    (late, again, waiting), batches, _ = while_held(ONE, scenario)
    assert isinstance(late, DeadlineError)
    assert again.pixels.shape == (1, 1, 3)
    assert (batches, waiting) == ([["first"], ["again"]], 0)


def test_a_caller_with_nothing_queued_is_foretold_less_than_a_flood():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds("x"), turn=Turn("flood")) for _ in range(50)]
        foretold = [batcher.wait_s(1, Turn(name)) for name in ("flood", "light")]
        begins = [batcher.wait_s(0, Turn(name)) for name in ("flood", "light")]
        await all_of(model, futures)
        return foretold, begins

    ((flood_s, light_s), begins), _, _ = while_held(ServiceTimes({1: 0.01}), scenario)
    assert 0.51 <= flood_s <= 0.52
    assert 0.01 <= light_s <= 0.03
    assert begins == [pytest.approx(flood_s - 0.01), pytest.approx(light_s - 0.01)]


def test_what_is_foretold_follows_how_long_calls_take_now():
    async def scenario(model, batcher):
        model.go.set()
        await asyncio.sleep(0.1)
        return batcher.wait_s(1)

    waited_s, _, _ = while_held(ServiceTimes({1: 0.0001}), scenario)
    assert waited_s > 0.01  # the first call was held back for 0.02 s


def test_batches_and_who_left_when_are_counted():
    async def scenario(model, batcher):
        futures = [batcher.submit(feeds(f"{i}")) for i in range(5)]
        futures[0].cancel()
        running = batcher.submit(feeds("running"))
        await asyncio.sleep(0)
        assert batcher.waiting == 5
        model.go.set()
        await asyncio.sleep(0.1)
        model.go.clear()
        last = batcher.submit(feeds("last"))
        while batcher.waiting:
            await asyncio.sleep(0.001)
        last.cancel()
        await asyncio.gather(running, *futures[1:])
        await all_of(model, [batcher.submit(feeds("end"))])

    _, _, found = while_held(FOUR, scenario)
    assert found["singlepass_cancelled_total", "queued"] == 1
    assert found["singlepass_cancelled_total", "running"] == 1
    assert found["singlepass_batch_size_count",] == 5  # first, a batch of four, one, last, end
    assert found["singlepass_batch_size_sum",] == 8
    assert found["singlepass_batch_duration_seconds_sum",] > 0


def test_what_is_running_ends_in_the_foretold_time():
    async def scenario(model, batcher):
        began = time.perf_counter()
        return batcher.running_s, began

    (running_s, _), _, _ = while_held(ServiceTimes({1: 5.0}), scenario)
    assert 4 < running_s < 5
