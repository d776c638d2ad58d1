"""Who is let in, and that Retry-After is true: on a model that runs by a clock of its own."""

import math
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serve.admission import Admission
from serve.errors import DeadlineError, NotReadyError, QueueFullError
from serve.fair_queue import FairQueue
from serve.service_times import ServiceTimes
from serve.turn import USUAL, Turn

SECOND = ServiceTimes({1: 1.0})


class Simulated:
    """A back end of which time passes only by `pass_s`; it batches as Batcher does."""

    ready, why_not = True, ""

    def __init__(self, times: ServiceTimes = SECOND) -> None:
        self.now_s = 0.0
        self._times = times
        self._queue: FairQueue = FairQueue()
        self._running: list = []
        self._ends = 0.0

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        running_s = self._ends - self.now_s if self._running else 0.0
        waiting = len(self._queue)
        ahead = self._queue.ahead(turn, max(1, pictures)) - max(0, pictures - 1)
        busy = waiting > 0 or running_s > 0
        return running_s + self._times.wait_s(pictures, ahead, waiting, busy)

    def infer(self, pictures: int, turn: Turn, places: ExitStack) -> None:
        """Make them, and give their places back when all are made."""
        left = [pictures]
        for _ in range(pictures):
            self._queue.put(_Picture(left, places), turn)
        self._begin()

    def pass_s(self, seconds: float) -> None:
        """What happens in that time."""
        until = self.now_s + seconds
        while self._running and self._ends <= until:
            self.now_s = self._ends
            for picture in self._running:
                picture.made()
            self._running = []
            self._begin()
        self.now_s = until

    def _begin(self) -> None:
        if not self._running and len(self._queue):
            size = self._times.batch(len(self._queue))
            self._running = [self._queue.pop() for _ in range(size)]
            self._ends = self.now_s + self._times.seconds[size]


class _Picture:
    def __init__(self, left: list[int], places: ExitStack) -> None:
        self._left = left
        self._places = places

    def made(self) -> None:
        self._left[0] -= 1
        if self._left[0] == 0:
            self._places.close()


class Gate:
    """Admission in front of a simulated back end."""

    def __init__(self, max_queue: int, told_apart=False, times=SECOND) -> None:
        self.backend = Simulated(times)
        clock = lambda: self.backend.now_s  # noqa: E731
        self.admission = Admission(self.backend, max_queue, told_apart, clock)

    def ask(self, pictures=1, turn=USUAL, deadline_s=math.inf) -> None:
        places = ExitStack()
        places.enter_context(self.admission.admit(pictures, deadline_s, turn))
        self.backend.infer(pictures, turn, places)

    def let_in(self, count: int, pictures=1, turn=USUAL) -> int:
        """How many of so many requests at once."""
        before = self.admission.open
        for _ in range(count):
            try:
                self.ask(pictures, turn)
            except QueueFullError:
                break
        return (self.admission.open - before) // pictures


def test_without_keys_one_caller_may_take_every_place():
    gate = Gate(8)
    assert gate.let_in(20) == 8
    with pytest.raises(
        QueueFullError,
        match=r"^8 pictures are in work and 1 more were asked for, the gateway takes 8 at a time$",
    ):
        gate.ask()


def test_with_keys_places_are_left_for_who_comes_next():
    gate = Gate(64, told_apart=True)
    assert [gate.let_in(99, turn=Turn(name)) for name in "abcd"] == [32, 16, 8, 4]
    with pytest.raises(
        QueueFullError, match="60 pictures are in work, 32 of them for a and 1 more"
    ):
        gate.ask(turn=Turn("a"))


def test_both_priorities_of_a_caller_count_as_one():
    gate = Gate(8, told_apart=True)
    assert gate.let_in(99, turn=Turn("a", "batch")) == 4
    assert gate.let_in(99, turn=Turn("a")) == 0
    assert gate.let_in(99, turn=Turn("b")) == 2


def test_an_idle_gateway_takes_the_largest_request_of_a_caller():
    gate = Gate(8, told_apart=True)
    assert gate.let_in(2, pictures=8, turn=Turn("a")) == 1


def test_a_request_that_comes_after_others_is_told_when_the_first_of_them_is_done():
    gate = Gate(4)
    for pictures in (1, 3):
        gate.ask(pictures)
    for pictures, wait_s in ((1, 1.0), (2, 4.0), (4, 4.0)):
        with pytest.raises(QueueFullError) as refused:
            gate.ask(pictures)
        assert refused.value.retry_after_s == pytest.approx(wait_s)


def test_places_are_free_only_once_what_follows_the_model_is_done():
    backend = Simulated()
    admission = Admission(backend, max_queue=2, clock=lambda: backend.now_s)
    with ExitStack() as places:
        for _ in range(2):  # made after 1 and 2 s, encoded 5 s later
            places.enter_context(admission.admit(1, math.inf, after_s=5.0))
            backend.infer(1, USUAL, ExitStack())
        told = []
        for now_s in (0.0, 3.0, 8.0):
            backend.pass_s(now_s - backend.now_s)
            with pytest.raises(QueueFullError) as refused:
                places.enter_context(admission.admit(1, math.inf, after_s=5.0))
            told.append(refused.value.retry_after_s)
    assert told == pytest.approx([6.0, 3.0, 5.0])  # at last only what encoding takes is known


def test_a_deadline_is_held_against_the_place_in_the_callers_fair_order():
    gate = Gate(64, told_apart=True)
    gate.let_in(20, turn=Turn("flood"))
    with pytest.raises(
        DeadlineError,
        match="ready in 21000 ms, the deadline is 3000 ms; others come first for 20000 ms",
    ):
        gate.ask(turn=Turn("flood"), deadline_s=3)
    gate.ask(turn=Turn("light"), deadline_s=3)


def test_a_back_end_that_is_not_ready_lets_nobody_in():
    gate = Gate(4)
    gate.backend.ready, gate.backend.why_not = False, "the model is not loaded"
    for check in (gate.ask, lambda: gate.admission.check_shared(0.0, 1.0)):
        with pytest.raises(NotReadyError, match=r"^the model is not loaded$"):
            check()


TABLES = st.builds(
    lambda fixed_s, each_s, most: ServiceTimes(
        {n: fixed_s + each_s * n for n in range(1, most + 1)}
    ),
    st.floats(0, 5),
    st.floats(0.01, 2),
    st.integers(1, 8),
)
ASKED = st.tuples(
    st.floats(0, 3),  # seconds after the one before
    st.builds(Turn, st.sampled_from("ab"), st.sampled_from(["interactive", "batch"])),
    st.integers(1, 4),
)


def crowded(gate, asked, same_turn) -> None:
    for pause_s, turn, pictures in asked:
        gate.backend.pass_s(pause_s)
        gate.let_in(1, pictures, USUAL if same_turn else turn)


@examples(max_examples=100, deadline=None)
@given(TABLES, st.lists(ASKED, max_size=40), st.integers(1, 4), st.booleans())
def test_who_comes_back_to_a_full_gateway_when_told_is_let_in(times, asked, pictures, told_apart):
    gate = Gate(8, told_apart, times)
    crowded(gate, asked, same_turn=True)
    try:
        gate.ask(pictures)
    except QueueFullError as full:
        gate.backend.pass_s(full.retry_after_s + 1e-6)
        gate.ask(pictures)


@examples(max_examples=100, deadline=None)
@given(TABLES, st.lists(ASKED, max_size=40), ASKED)
def test_who_others_overtook_is_let_in_the_second_time_at_the_latest(times, asked, last):
    gate = Gate(8, True, times)
    crowded(gate, asked, same_turn=False)
    _, turn, pictures = last
    for _ in range(2):
        try:
            return gate.ask(pictures, turn)
        except QueueFullError as full:
            gate.backend.pass_s(full.retry_after_s + 1e-6)
    return gate.ask(pictures, turn)


@examples(max_examples=100, deadline=None)
@given(TABLES, st.lists(ASKED, max_size=40), st.integers(1, 4), st.floats(1, 4))
def test_who_comes_back_with_a_deadline_when_told_is_let_in(times, asked, pictures, patience):
    gate = Gate(64, times=times)
    crowded(gate, asked, same_turn=True)
    deadline_s = patience * times.wait_s(pictures, 0, 0, busy=False)
    try:
        gate.ask(pictures, deadline_s=deadline_s)
    except DeadlineError as late:
        gate.backend.pass_s(late.retry_after_s + 1e-6)
        gate.ask(pictures, deadline_s=deadline_s)
