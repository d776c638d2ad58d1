"""Memory goes back to the machine, and Python looks no longer through what stays."""

import ctypes
import gc

import psutil
import pytest

from serve.heap import give_back, settle

PIECES, BYTES = 1000, 100_000  # each below the size from which glibc gives back by itself


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_that_is_free_between_what_is_used_is_given_back():
    process = psutil.Process()
    pieces = [b"x" * BYTES for _ in range(PIECES)]
    last = pieces.pop()  # so that what lies below it cannot be given back by shrinking the heap
    del pieces
    before = process.memory_info().rss
    give_back()
    assert process.memory_info().rss < before - PIECES * BYTES // 2
    assert len(last) == BYTES


def test_what_is_there_is_not_looked_through_again_and_what_comes_later_is_freed():
    class Knot:
        freed = False

        def __init__(self):
            self.knot = self

        def __del__(self):
            Knot.freed = True

    try:
        settle()
        settled, left = gc.get_freeze_count(), len(gc.get_objects())
        Knot()
        gc.collect()
    finally:
        gc.unfreeze()
    assert left < 1000 < settled
    assert Knot.freed
