"""Triton's dynamic batching from measured service times.

t(b) milliseconds that one call with b pictures takes, c(b) = t(b) / b milliseconds per picture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import ExportError

GAIN = 0.97  # a larger batch must take at most this share of the time per picture


@dataclass(frozen=True)
class Batching:
    """Batch sizes that are sent as soon as they are full, and how long a picture waits for them."""

    preferred: tuple[int, ...]
    delay_us: int


def derive_batching(service_ms: Mapping[int, float], max_batch: int) -> Batching:
    """The sizes that pay, and the time that they save.

    A size pays if c(b) is at most GAIN times the c of every smaller size that was measured. A
    picture waits no longer than the best size b saves per picture, t(1) - c(b): so waiting in vain
    costs less than one more call, and a lone picture never takes twice its own time. If no size
    pays, pictures go one by one (preferred size 1) at once.
    """
    _check(service_ms, max_batch)
    per_picture = {size: service_ms[size] / size for size in sorted(service_ms)}
    best, preferred = per_picture[1], list[int]()
    for size, cost_ms in per_picture.items():
        if size > 1 and cost_ms <= GAIN * best:
            preferred.append(size)
        best = min(best, cost_ms)
    if not preferred:
        return Batching((1,), 0)
    saved_ms = per_picture[1] - per_picture[preferred[-1]]
    return Batching(tuple(preferred), int(saved_ms * 1000))


def _check(service_ms: Mapping[int, float], max_batch: int) -> None:
    """Times are positive, of sizes that the model takes, size 1 among them."""
    if 1 not in service_ms:
        raise ExportError(f"service_ms has the batch sizes {sorted(service_ms)}; 1 must be in it")
    for size, taken_ms in service_ms.items():
        if not 1 <= size <= max_batch:
            raise ExportError(
                f"service_ms has a batch of {size}; it must lie between 1 and max_batch {max_batch}"
            )
        if not (math.isfinite(taken_ms) and taken_ms > 0):
            raise ExportError(f"service_ms of batch {size} is {taken_ms}; it must be above 0")
