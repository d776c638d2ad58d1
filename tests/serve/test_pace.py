"""The wait that is foretold from a server's latest answers."""

import pytest

from serve.pace import KEPT_S, Pace


def test_without_answers_no_wait_is_foretold():
    assert Pace().wait_s(5) == 0.0


def test_an_answer_is_shared_by_the_pictures_in_work_and_never_faster_than_the_fastest():
    pace = Pace()
    for in_work in (4, 4, 4):
        pace.add(2.0, in_work)
    assert [pace.wait_s(pictures) for pictures in (0, 1, 4, 8)] == [0.0, 2.0, 2.0, 4.0]


def test_one_slow_answer_does_not_change_the_forecast():
    pace = Pace()
    for taken_s in (0.1, 0.1, 30.0):
        pace.add(taken_s, 1)
    assert pace.wait_s(10) == pytest.approx(1.0)


def test_old_answers_are_forgotten_so_that_a_server_is_tried_again():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.add(60.0, 1)
    now[0] = KEPT_S
    assert pace.wait_s(1) == 60.0
    now[0] = KEPT_S + 0.1
    assert pace.wait_s(1) == 0.0
