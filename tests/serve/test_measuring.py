"""Measuring the batch sizes: as long as it takes to know them, and no longer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from serve.measuring import measure
from serve.timed_calls import TimedCalls

SIZES = [1, 2, 3, 4, 5, 6, 7, 8]


class Clock:
    """Time that goes on only while a model runs: no other load on the machine moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[int] = []

    def perf_counter(self) -> float:
        return self.now_s

    def running(self, seconds, pixel=lambda row, rows: row["i"]):
        """A model whose calls take `seconds(batch size)`."""

        def call(rows):
            self.calls.append(len(rows))
            self.now_s += seconds(len(rows))
            return [np.full((1, 1, 3), pixel(row, rows), np.uint8) for row in rows]

        return call


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("serve.timed_calls.time", made)
    return made


class Here:
    """An executor without threads."""

    def map(self, function, *columns):
        return [function(*row) for row in zip(*columns, strict=True)]


def measured(run, rows, budget_s):
    return measure(TimedCalls(run, Here()), rows, budget_s)


def feeds(count: int):
    return [{"i": np.array(i)} for i in range(count)]


def test_the_sizes_that_take_less_time_a_picture_are_kept(clock):
    constant = measured(clock.running(lambda size: 0.004), feeds(8), budget_s=5)
    linear = measured(clock.running(lambda size: 0.004 * size), feeds(8), budget_s=5)
    assert sorted(constant.seconds) == SIZES
    assert constant.seconds[4] == pytest.approx(0.004)
    assert sorted(linear.seconds) == [1]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6, 8, 13])
def test_no_size_up_to_the_largest_is_forgotten(clock, most):
    times = measured(clock.running(lambda size: 0.004), feeds(most), budget_s=5)
    assert sorted(times.seconds) == list(range(1, most + 1))


def test_a_size_that_pays_less_than_a_smaller_one_is_not_kept(clock):
    seconds = {1: 0.010, 2: 0.012, 3: 0.021, 4: 0.020, 5: 0.024, 6: 0.040, 7: 0.050, 8: 0.060}
    times = measured(clock.running(seconds.__getitem__), feeds(8), budget_s=5)
    assert times.seconds == pytest.approx({1: 0.010, 2: 0.012, 4: 0.020, 5: 0.024})


def test_a_stable_time_is_known_after_three_calls_and_a_hopeless_size_after_one(clock):
    measured(clock.running(lambda size: 0.004 if size == 1 else 0.02 * size), feeds(8), budget_s=5)
    assert clock.calls == [1, 1, 2, 2, 4, 4, 8, 8, 1, 1]  # of each, the first warms up


def test_a_slow_second_of_the_machine_hits_all_sizes_alike(clock):
    def seconds(size):  # slow as long as the first calls are made, and for one round after
        return (0.004 + 0.004 * size) * (1 if len(clock.calls) > 14 else 2 + 0.2 * size)

    times = measured(clock.running(seconds), feeds(4), budget_s=5)
    assert times.seconds == pytest.approx({1: 0.008, 2: 0.012, 3: 0.016, 4: 0.020})


def test_unsteady_times_are_measured_five_times_and_give_their_median(clock):
    taken = iter([9.0, 0.10, 0.20, 0.15, 0.30, 0.12] + [1.0] * 9)
    times = measured(clock.running(lambda size: next(taken)), feeds(1), budget_s=60)
    assert times.seconds == pytest.approx({1: 0.15})


def test_a_batch_size_that_changes_pictures_is_not_used(clock, caplog):
    wrong = clock.running(lambda size: 0.003, lambda row, rows: row["i"] + (len(rows) == 3))
    times = measured(wrong, feeds(4), budget_s=5)
    assert sorted(times.seconds) == [1, 2, 4]
    assert "batches of 3 are not used: they change the pictures" in caplog.text


def test_measuring_a_slow_model_ends_with_its_budget(clock, caplog):
    caplog.set_level("INFO")
    times = measured(clock.running(lambda size: 0.1), feeds(8), budget_s=0.05)
    assert sorted(times.seconds) == [1]
    assert clock.now_s <= 0.2 + 1e-9  # one call to warm up, and one measured
    assert "batches of 2, 4, 8 pictures are not used: not measured in time" in caplog.text


def test_waiting_until_nobody_else_computes_does_not_count_nor_cost_of_the_budget(clock):
    @contextmanager
    def behind_another():
        clock.now_s += 10.0  # somebody else's call
        yield

    run = clock.running(lambda size: 0.004)
    times = measure(TimedCalls(run, Here(), alone=behind_another), feeds(8), budget_s=5)
    assert times.seconds == pytest.approx(dict.fromkeys(SIZES, 0.004))


def test_calls_that_run_at_a_time_are_measured_together():
    together = threading.Barrier(2, timeout=10)

    def run(rows):
        together.wait()  # for ever, if it were called once at a time
        return [np.full((1, 1, 3), row["i"], np.uint8) for row in rows]

    with ThreadPoolExecutor(2) as executor:
        times = measure(TimedCalls(run, executor, calls=2), feeds(2), budget_s=5)
    assert times.calls == 2
    assert times.seconds[1] > 0


def test_a_model_that_fails_while_it_is_measured_says_why():
    def run(rows):
        raise ValueError("no such operator")

    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="no such operator"):
        TimedCalls(run, executor).fastest(feeds(1), long_s=1)


@pytest.mark.parametrize(("taken_s", "calls"), [(0.004, 4), (2.0, 1)])
def test_a_slow_model_is_called_once_to_know_that_it_is_slow(clock, taken_s, calls):
    timed = TimedCalls(clock.running(lambda size: taken_s), Here())
    _, fastest_s = timed.fastest(feeds(1), long_s=1)
    assert fastest_s == pytest.approx(taken_s)
    assert clock.calls == [1] * calls
