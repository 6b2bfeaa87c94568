"""One value more than a sweep has, where the best of its values lies at its edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def one_further(values: Sequence[Any], best: Any) -> float | int | None:
    """The value behind the edge, as far from it as the one before, by their ratio.

    Args:
        values: those of the sweep.
        best: the best of them.

    Returns:
        None where the best lies between others, or where the values are not several different
        numbers above 0, which alone have a ratio.
    """
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values):
        return None
    ordered = sorted(set(values))
    if len(ordered) < 2 or best not in (ordered[0], ordered[-1]):
        return None
    near = ordered[1] if best == ordered[0] else ordered[-2]
    beyond = best * best / near
    if all(isinstance(v, int) for v in values):
        return round(beyond) if round(beyond) not in (0, *values) else None
    return float(f"{beyond:.6g}")
