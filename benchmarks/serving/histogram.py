"""Percentiles of many durations in little memory: log-linear buckets, as in HdrHistogram."""

from collections import Counter

BITS = 8  # a bucket is at most 2**-7 of its values wide: percentiles are right within 0.8 %


class Histogram:
    """Counts durations in buckets; exact for the count, the sum and the largest."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration of 0 or more."""
        nanoseconds = int(seconds * 1e9)
        shift = max(0, nanoseconds.bit_length() - BITS)
        self.counts[nanoseconds >> shift << shift] += 1
        self.count += 1
        self.sum_s += seconds
        self.max_s = max(self.max_s, seconds)

    def percentile_s(self, percent: float) -> float:
        """The smallest duration that `percent` of all do not exceed; nan without any."""
        wanted, seen = percent / 100 * self.count, 0
        for low in sorted(self.counts):
            seen += self.counts[low]
            if seen >= wanted:
                shift = max(0, low.bit_length() - BITS)
                return min(self.max_s, (low + (1 << shift)) / 1e9)
        return float("nan")

    def share_within(self, seconds: float) -> float:
        """Which share of all took at most that long, by the buckets' lower ends; 1 without any."""
        limit = seconds * 1e9
        within = sum(number for low, number in self.counts.items() if low <= limit)
        return within / self.count if self.count else 1.0

    def __add__(self, other: "Histogram") -> "Histogram":
        total = Histogram()
        total.counts = self.counts + other.counts
        total.count = self.count + other.count
        total.sum_s = self.sum_s + other.sum_s
        total.max_s = max(self.max_s, other.max_s)
        return total
