"""The numbers along an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefix_rft.report.text import MINUS


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) in [low, high], about ``count`` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    start, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(start, end + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick's number, with as many decimals as the distance between ticks needs."""
    if abs(value) < step * 1e-6:
        return "0"
    if abs(value) >= 1e6 or (abs(value) < 0.01 and step < 1e-4):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of the values with a margin, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(low) * 0.1 or 1.0
    # A share that stays above zero is not drawn below it.
    return (0.0 if 0 <= low < margin else low - margin), high + margin
