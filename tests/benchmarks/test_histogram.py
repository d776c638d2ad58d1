"""Log-linear buckets against numpy's exact percentiles."""

import math

import numpy as np
import pytest
from histogram import Histogram
from hypothesis import given
from hypothesis import strategies as st

PERCENTS = (1, 50, 90, 99, 99.9, 100)


def filled(seconds):
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    return histogram


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300))
def test_percentiles_are_right_within_a_bucket(seconds):
    histogram = filled(seconds)
    for percent in PERCENTS:
        exact = np.percentile(seconds, percent, method="inverted_cdf")
        assert exact - 1e-9 <= histogram.percentile_s(percent) <= exact * (1 + 2**-7) + 2e-9


def test_sum_count_and_largest_are_exact():
    histogram = filled([0.001, 0.5, 0.0])
    assert (histogram.count, histogram.max_s) == (3, 0.5)
    assert histogram.sum_s == pytest.approx(0.501)
    assert histogram.percentile_s(100) == 0.5


def test_two_histograms_add_up_to_that_of_all():
    seconds = np.random.default_rng(0).exponential(0.01, 2000)
    total = filled(seconds[:700]) + filled(seconds[700:])
    assert total.counts == filled(seconds).counts
    assert (total.count, total.max_s) == (2000, seconds.max())


def test_the_share_within_a_time_counts_what_took_less():
    histogram = filled([0.1] * 90 + [0.9] * 10)
    assert histogram.share_within(0.5) == 0.9
    assert histogram.share_within(1.0) == 1.0
    assert histogram.share_within(0.01) == 0.0


def test_without_durations_there_is_no_percentile():
    assert math.isnan(Histogram().percentile_s(99))
    assert Histogram().share_within(1) == 1.0


def test_memory_hangs_on_the_range_and_not_on_the_count():
    seconds = np.random.default_rng(0).uniform(0.001, 1.0, 50_000)
    assert len(filled(seconds).counts) <= 11 * 128
