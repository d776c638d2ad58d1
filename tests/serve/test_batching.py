"""How batches are formed: which sizes, what is foretold, and why nobody waits for company."""

import random
import statistics

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serve.service_times import Drift, ServiceTimes

# measured sizes: 1, and some that take less time a picture than every smaller one
TABLES = st.dictionaries(st.integers(2, 16), st.floats(0.5, 0.97), max_size=6).map(
    lambda shares: ServiceTimes(_paying(shares))
)


def _paying(shares: dict[int, float]) -> dict[int, float]:
    seconds, each = {1: 1.0}, 1.0
    for size in sorted(shares):
        each *= shares[size]
        seconds[size] = size * each
    return seconds


@examples(max_examples=100, deadline=None)
@given(TABLES, st.integers(1, 100))
def test_a_batch_is_the_largest_measured_one_that_waits_and_costs_least_a_picture(times, waiting):
    size = times.batch(waiting)
    allowed = [each for each in times.seconds if each <= waiting]
    assert size == max(allowed)
    assert times.seconds[size] / size == min(times.seconds[each] / each for each in allowed)


@examples(max_examples=100, deadline=None)
@given(TABLES, st.integers(0, 60), st.integers(0, 60))
def test_what_is_foretold_of_a_place_is_when_its_batch_ends(times, place, behind):
    left, seconds, made = place + behind, 0.0, 0
    while made < place:
        size = times.batch(left)
        seconds, made, left = seconds + times.seconds[size], made + size, left - size
    assert times.until_s(place, place + behind) == pytest.approx(seconds)


@examples(max_examples=100, deadline=None)
@given(TABLES, st.integers(1, 8), st.integers(0, 40))
@example(ServiceTimes({1: 1.0, 2: 1.5}), 2, 1)
def test_pictures_that_come_to_a_busy_model_are_never_foretold_too_soon(times, pictures, ahead):
    foretold_s = times.wait_s(pictures, ahead, ahead, busy=True)
    assert foretold_s >= times.total_s(ahead + pictures) - 1e-9  # if nobody else comes
    largest = max(times.seconds)
    filled = -(-(ahead + pictures) // largest)  # if others fill up every batch
    assert foretold_s >= filled * times.seconds[largest] - 1e-9
    assert times.wait_s(0, ahead, ahead, busy=True) == pytest.approx(times.total_s(ahead))


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_an_idle_model_takes_what_it_was_measured_to_take(pictures):
    times = ServiceTimes({1: 1.0, 2: 1.5, 3: 1.8})
    assert times.wait_s(pictures, 0, 0, busy=False) == times.seconds[pictures]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_drift_is_what_nine_calls_in_ten_needed():
    drift = Drift(Clock())
    assert drift.factor == 1
    for taken_s in [0.011] * 9 + [0.5]:
        drift.add(0.010, taken_s)
    assert drift.factor == pytest.approx(1.1)
    for _ in range(4):
        drift.add(0.010, 0.025)
    assert drift.factor == pytest.approx(2.5)


def test_the_drift_of_a_machine_that_was_slow_once_is_forgotten():
    clock = Clock()
    drift = Drift(clock)
    drift.add(0.010, 9.0)
    drift.add(0.0, 1.0)  # not measured: says nothing
    assert drift.factor == pytest.approx(900)
    clock.now_s = 10.1
    assert drift.factor == 1


def mean_latency(times: ServiceTimes, per_s: float, held_s: float) -> float:
    """Mean seconds of 3000 pictures that come at random; the first that waits is held so long."""
    draw, now, arrivals = random.Random(7), 0.0, []
    for _ in range(3000):
        now += draw.expovariate(per_s)
        arrivals.append(now)
    most, free_at, next_one, latencies = max(times.seconds), 0.0, 0, []
    while next_one < len(arrivals):
        start = max(free_at, arrivals[next_one])
        full = next_one + most - 1
        held_until = arrivals[next_one] + held_s
        if full < len(arrivals):
            held_until = min(held_until, arrivals[full])
        start = max(start, held_until)
        waiting = sum(1 for at in arrivals[next_one : next_one + most] if at <= start)
        size = times.batch(waiting)
        free_at = start + times.seconds[size]
        latencies += [free_at - at for at in arrivals[next_one : next_one + size]]
        next_one += size
    return statistics.fmean(latencies)


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("eight_s", [0.01, 0.02, 0.045, 0.075])  # a batch of 8; of 1: 0.01
def test_to_hold_a_picture_back_for_company_does_not_pay(load, eight_s):
    each_s = (eight_s - 0.01) / 7
    times = ServiceTimes({size: 0.01 + (size - 1) * each_s for size in range(1, 9)})
    per_s = load * 8 / eight_s
    at_once_s = mean_latency(times, per_s, held_s=0.0)
    for held_s in (0.001, 0.003, 0.01):
        assert mean_latency(times, per_s, held_s) > 0.97 * at_once_s  # the rest is chance
