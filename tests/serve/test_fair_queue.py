"""The order in which callers are served, against what start-time fair queueing promises."""

import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serve.fair_queue import STRIDES, FairQueue
from serve.turn import USUAL, Turn

TURNS = st.builds(Turn, st.sampled_from("abc"), st.sampled_from(["interactive", "batch"]))


def steps(*of_items, most=80):
    """What happens to a queue: somebody puts, one is popped; something is done to some item."""
    touched = st.tuples(st.sampled_from(("pop", *of_items)), st.integers(0, 30))
    return st.lists(st.one_of(st.tuples(st.just("put"), TURNS), touched), max_size=most)


ANY_STEPS = steps("take", "remove")


def filled(**counts) -> FairQueue:
    """A queue in which so many items of each caller wait, those of the first caller first."""
    queue = FairQueue()
    for name, count in counts.items():
        caller, _, priority = name.partition("_")
        for i in range(count):
            queue.put((name, i), Turn(caller, priority or "interactive"))
    return queue


def after(steps) -> tuple[FairQueue, dict[Turn, list[int]]]:
    """A queue after these steps, and what must wait of each turn, oldest first."""
    queue, waiting = FairQueue(), defaultdict(list)
    for number, (step, what) in enumerate(steps):
        if step == "put":
            queue.put(number, what)
            waiting[what].append(number)
        elif step == "pop":
            item = queue.pop()
            for items in waiting.values():
                assert item not in items or items.pop(0) == item
        elif len(queue):
            item = list(queue)[what % len(queue)]
            getattr(queue, step)(item)
            for items in waiting.values():
                if item in items:
                    items.remove(item)
    return queue, waiting


def leaving(queue) -> list:
    """All that waits, popped."""
    return [queue.pop() for _ in range(len(queue))]


def test_one_turn_is_served_in_the_order_in_which_it_came():
    queue = filled(a=20)
    assert leaving(queue) == [("a", i) for i in range(20)]
    assert queue.pop() is None


def test_a_newcomer_is_next_but_one_however_many_wait_of_another():
    queue = filled(flood=50)
    queue.pop()
    queue.put("light", Turn("light"))
    assert [queue.pop() for _ in range(2)].index("light") <= 1


def test_interactive_is_served_eight_times_as_often_as_batch():
    queue = filled(a=800, b_batch=800)
    served = Counter(queue.pop()[0] for _ in range(90))
    assert served == {"a": 80, "b_batch": 10}


def test_who_was_away_has_saved_up_nothing():
    queue = filled(a=100, b=1)
    for _ in range(50):
        queue.pop()
    for i in range(40):
        queue.put(("b", i), Turn("b"))
    assert abs(Counter(queue.pop()[0] for _ in range(40))["b"] - 20) <= 1


def test_what_is_removed_costs_nothing_and_what_is_taken_out_of_turn_does():
    queue = filled(a=4, b=4)
    queue.remove(("a", 1))
    queue.remove("never there")
    assert list(queue) == [("a", 0), ("b", 0), ("a", 2), ("b", 1), ("a", 3), ("b", 2), ("b", 3)]
    queue.take(("a", 3))
    assert list(queue)[:3] == [("b", 0), ("a", 0), ("b", 1)]
    assert ("a", 3) not in queue


def test_the_same_item_cannot_wait_twice():
    queue = filled(a=1)
    with pytest.raises(AssertionError, match=r"\('a', 0\) waits already"):
        queue.put(("a", 0), USUAL)


@examples(max_examples=60, deadline=None)
@given(ANY_STEPS)
def test_items_leave_in_the_order_of_iteration_and_first_come_first_served_within_a_turn(steps):
    queue, waiting = after(steps)
    order = list(queue)
    assert len(queue) == len(order) == sum(map(len, waiting.values()))
    assert leaving(queue) == order
    for items in waiting.values():
        assert [item for item in order if item in set(items)] == items


@examples(max_examples=60, deadline=None)
@given(ANY_STEPS, TURNS, st.integers(1, 5))
def test_it_is_foretold_how_many_leave_before_a_newcomer(steps, turn, count):
    queue, _ = after(steps)
    ahead = queue.ahead(turn, count)
    newcomers = [("new", i) for i in range(count)]
    for newcomer in newcomers:
        queue.put(newcomer, turn)
    assert list(queue).index(newcomers[-1]) == ahead


@examples(max_examples=60, deadline=None)
@given(steps("remove"), TURNS, TURNS, st.integers(2, 60))
def test_who_waits_all_the_time_gets_a_share_that_differs_by_one_item_at_most(
    steps, one, other, calls
):
    queue, _ = after(steps)
    for i in range(80):
        queue.put((one, i), one)
        if other != one:
            queue.put((other, i), other)
    turn_of = {item: turn for turn, flow in queue._flows.items() for item in flow.items}
    served = Counter(turn_of[queue.pop()] for _ in range(calls))
    in_virtual_time = [served[turn] * STRIDES[turn.priority] for turn in (one, other)]
    bound = STRIDES[one.priority] + STRIDES[other.priority]
    assert abs(in_virtual_time[0] - in_virtual_time[1]) <= bound


@examples(max_examples=60, deadline=None)
@given(steps("remove", most=20), TURNS, st.lists(TURNS, min_size=1, max_size=20))
def test_nobody_starves(steps, turn, floods):
    queue, waiting = after(steps)
    before = len(waiting[turn])
    queue.put("patient", turn)
    most = before + 1  # calls until then, if each other turn is used to the full
    for other in {*waiting, *floods} - {turn}:
        strides = STRIDES[turn.priority], STRIDES[other.priority]
        most += (before + 1) * strides[0] // strides[1] + 2
    served = []
    for number, flood in zip(range(most), itertools.cycle(floods), strict=False):
        queue.put(("flood", number), flood)
        served.append(queue.pop())
    assert "patient" in served
