"""Curves made fit for a plot: fewer points, and a smoothed copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float | None]
"""Step and value; None where the value was not finite."""


@dataclass(frozen=True)
class Bucket:
    """Mean of consecutive points: mean step, mean value (None: none was finite), how many."""

    x: float
    y: float | None
    count: int


def bucket_means(points: Sequence[Point], limit: int) -> list[Bucket]:
    """At most ``limit`` means over equally many consecutive points (the last may have fewer)."""
    size = max(1, math.ceil(len(points) / limit))
    buckets = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [y for _, y in part if y is not None]
        mean = sum(values) / len(values) if values else None
        buckets.append(Bucket(sum(x for x, _ in part) / len(part), mean, len(values)))
    return buckets


def smoothed(buckets: Sequence[Bucket], window: float) -> list[Point]:
    """At each bucket the mean of all values within ``window`` / 2 steps on either side.

    At the ends the window is cut off. A bucket without a finite value stays a gap.
    """
    result: list[Point] = []
    first = 0
    for i, bucket in enumerate(buckets):
        while buckets[first].x < bucket.x - window / 2:
            first += 1
        total, count = 0.0, 0
        for other in buckets[first:]:
            if other.x > bucket.x + window / 2:
                break
            if other.y is not None:
                total, count = total + other.y * other.count, count + other.count
        result.append((bucket.x, None if buckets[i].y is None else total / count))
    return result


def window_of(first: float, last: float) -> int:
    """Width of the smoothing window: a twenty-fifth of the steps shown, odd; 1 is none."""
    width = int((last - first + 1) / 25)
    return max(1, width - 1 + width % 2)
