"""Limits of so many pictures in a time: how they are written, and that Retry-After is true."""

import re
import threading

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from limits.storage import memory

from serve.errors import InvalidParametersError, RateLimitedError, SettingsError
from serve.rates import Rates, read_rate, words


class Clock:
    """The time of the day, as the test says."""

    def __init__(self) -> None:
        self.now_s = 1_000_000_007.25

    def time(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def clock():
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "time", clock)
        yield clock


def passes(rates, rate, pictures=1, caller="a") -> bool:
    try:
        rates.charge(caller, rate, pictures)
    except RateLimitedError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("600/minute", "600 pictures per minute"),
        ("50 per 2 hours", "50 pictures per 2 hours"),
        ("1/second", "1 pictures per second"),
    ],
)
def test_a_limit_is_read_and_said_in_words(text, said):
    assert words(read_rate(text, "rate")) == said


@pytest.mark.parametrize("text", ["", "600", "0/minute", "-1/minute", "5/moon", "1/second;9/hour"])
def test_what_is_no_limit_is_refused_with_what_is_allowed(text):
    sentence = f"rate is {text!r}, allowed are such as 600/minute or 50 per 2 hours"
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        read_rate(text, "rate")


def test_a_limit_is_counted_in_pictures_and_for_each_caller(clock):
    rates, rate = Rates(), read_rate("8/minute", "rate")
    assert passes(rates, rate, 5)
    assert not passes(rates, rate, 4)
    assert passes(rates, rate, 3)
    assert not passes(rates, rate)
    assert passes(rates, rate, 8, caller="b")


def test_who_asks_too_often_is_told_when_it_will_pass(clock):
    rates, rate = Rates(), read_rate("8/minute", "rate")
    rates.charge("a", rate, 8)
    with pytest.raises(
        RateLimitedError, match=r"^the key 'a' may have 8 pictures per minute, and 2 more"
    ) as told:
        rates.charge("a", rate, 2)
    assert 0 < told.value.retry_after_s < 60


def test_more_at_once_than_the_limit_can_never_pass_and_is_said_so(clock):
    sentence = "^num_images: is 9, the key 'a' may have 8 pictures per minute$"
    with pytest.raises(InvalidParametersError, match=sentence):
        Rates().charge("a", read_rate("8/minute", "rate"), 9)


def test_a_clock_that_is_set_back_locks_nobody_out_for_longer_than_a_window(clock):
    rates, rate = Rates(), read_rate("8/minute", "rate")
    rates.charge("a", rate, 8)
    clock.now_s -= 86_400
    assert rates.wait_s("a", rate, 1) <= 60
    assert passes(rates, rate, 8)


@examples(max_examples=100, deadline=None)
@given(
    amount=st.integers(1, 40),
    earlier=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 40)), max_size=12),
    pictures=st.integers(1, 40),
)
def test_who_waits_as_told_passes_and_who_asks_sooner_does_not(clock, amount, earlier, pictures):
    clock.now_s = 1_000_000_007.25
    rates, rate = Rates(), read_rate(f"{amount}/minute", "rate")
    for pause_s, asked in earlier:
        clock.now_s += pause_s
        passes(rates, rate, min(asked, amount))
    pictures = min(pictures, amount)
    wait_s = rates.wait_s("a", rate, pictures)
    assert wait_s < 121
    if wait_s > 0.02:
        clock.now_s += wait_s - 0.01
        assert not passes(rates, rate, pictures)
        wait_s = 0.01
    clock.now_s += wait_s
    assert passes(rates, rate, pictures)


def test_counting_leaves_no_threads_behind():
    rates, rate = Rates(), read_rate("100/second", "rate")
    before = threading.active_count()
    for _ in range(50):
        rates.charge("a", rate, 1)
    assert threading.active_count() <= before + 1
