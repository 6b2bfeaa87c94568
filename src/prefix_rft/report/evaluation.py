"""Evaluations of a run: mean reward with its interval, as words and as a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prefix_rft.report.text import number
from prefix_rft.runs.evaluations import HeldOut

WIDTH = 220


@dataclass(frozen=True)
class Evaluated:
    """The numbers of a run's model, ``base`` or ``trained``, and the run's colour."""

    run: str
    colour: int
    stage: str
    numbers: HeldOut


def scale_of(evaluations: Sequence[HeldOut]) -> tuple[float, float]:
    """Ends of the axis: 0 and 1 for shares, else what the intervals span."""
    low, high = min(e.low for e in evaluations), max(e.high for e in evaluations)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def share(value: float | None, scale: tuple[float, float] = (0.0, 1.0)) -> str:
    """A percentage where the scale is one of shares, else the number."""
    if value is None or scale != (0.0, 1.0):
        return number(value)
    return f"{value:.1%}".replace("%", " %")


def draw_interval(
    values: tuple[float, float, float],
    scale: tuple[float, float],
    colour: int = 0,
    zero: bool = False,
) -> Markup:
    """A dot for the mean and a bar for the interval.

    Args:
        values: low end, mean, high end.
        scale: ends of the axis, the same for all pictures that are to be compared.
        colour: the number of the run's colour.
        zero: whether to mark zero on the axis.
    """

    def x_of(value: float) -> float:
        return 6 + (value - scale[0]) / (scale[1] - scale[0]) * (WIDTH - 12)

    low, mean, high = map(x_of, values)
    mark = Markup('<path class="zero" d="M{:.1f} 1V17"/>').format(x_of(0.0)) if zero else ""
    return Markup(
        '<svg class="interval" viewBox="0 0 {} 18" aria-hidden="true">'
        '<path class="axis" d="M6 9H{}"/>{}<path class="bar c{}" d="M{:.1f} 9H{:.1f}"/>'
        '<circle class="dot c{}" cx="{:.1f}" cy="9" r="4.5"/></svg>'
    ).format(WIDTH, WIDTH - 6, mark, colour, low, high, colour, mean)
