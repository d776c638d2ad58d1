"""Threads that compute give way to the event loop."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.give_way import STEPS, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_a_thread_and_those_that_it_starts_give_way_and_no_other() -> None:
    before = niceness()

    def started() -> tuple[int, int]:
        with ThreadPoolExecutor(1) as inner:
            return niceness(), inner.submit(niceness).result()

    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(started).result() == (min(19, before + STEPS),) * 2
    assert niceness() == before


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    before = niceness()
    give_way()
    assert niceness() == before
