"""The C library gives back what lies free between what is still in use."""

import ctypes

import psutil
import pytest

from serve.heap import give_back

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
