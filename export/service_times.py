"""How long one call takes at each batch size, on the machine that exports."""

import statistics
import time

import numpy as np

from export.gate.cases import Feeds, Infer

CALLS = 5
LONG_S = 2.0  # a call this long is measured once


def measure_service_ms(infer: Infer, feeds: Feeds, max_batch: int) -> dict[int, float]:
    """Median milliseconds of a call at 1, 2, 4, … and `max_batch` pictures, rows of `feeds`."""
    sizes = sorted({*(2**k for k in range(max_batch.bit_length())), max_batch})
    return {size: _median_ms(infer, _batch(feeds, size)) for size in sizes}


def _batch(feeds: Feeds, size: int) -> Feeds:
    """The first `size` rows, over again where there are fewer."""
    return {name: np.resize(value, (size, *value.shape[1:])) for name, value in feeds.items()}


def _median_ms(infer: Infer, feeds: Feeds) -> float:
    """The first call, which prepares memory, counts only if it is too long to be repeated."""
    first = _ms(infer, feeds)
    if first > LONG_S * 1e3:
        return first
    return statistics.median(_ms(infer, feeds) for _ in range(CALLS))


def _ms(infer: Infer, feeds: Feeds) -> float:
    start = time.perf_counter()
    infer(feeds)
    return 1e3 * (time.perf_counter() - start)
