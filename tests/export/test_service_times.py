"""Measured service times: the sizes asked for, and the right number of calls."""

import numpy as np

from export import service_times
from export.service_times import measure_service_ms


def test_powers_of_two_and_the_largest_batch_are_measured() -> None:
    seen: list[int] = []

    def infer(feeds):
        seen.append(len(feeds["noise"]))
        return np.zeros((len(feeds["noise"]), 8, 8, 3), np.uint8)

    times = measure_service_ms(infer, {"noise": np.zeros((3, 4, 1, 1), np.float32)}, 6)
    assert list(times) == [1, 2, 4, 6]
    assert all(taken_ms > 0 for taken_ms in times.values())
    assert seen.count(6) == 1 + service_times.CALLS


def test_a_long_call_is_measured_once(monkeypatch) -> None:
    monkeypatch.setattr(service_times, "LONG_S", 0.0)
    seen: list[int] = []

    def infer(feeds):
        seen.append(len(feeds["noise"]))
        return np.zeros((1, 8, 8, 3), np.uint8)

    measure_service_ms(infer, {"noise": np.zeros((1, 4, 1, 1), np.float32)}, 2)
    assert seen == [1, 2]
