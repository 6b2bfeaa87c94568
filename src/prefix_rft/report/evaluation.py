"""Evaluations of a run: mean reward with its interval, as words and as a small picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prefix_rft.report.samples import finite
from prefix_rft.report.text import number

WIDTH = 220


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; ``low`` and ``high`` are the ends of its 95 % interval over problems."""

    run: str
    colour: int
    stage: str
    mean: float
    low: float
    high: float
    problems: int
    samples: int
    truncated: float | None
    no_answer: float | None


def evaluations_of(run: str, colour: int, data: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations in ``eval.json``, in its order (the base model, then the trained one).

    Raises:
        KeyError: an evaluation lacks a value.
        TypeError: a value is no number.
    """
    return [
        Evaluation(
            run,
            colour,
            stage,
            mean=_needed(e, "mean"),
            low=_needed(e, "low"),
            high=_needed(e, "high"),
            problems=int(_needed(e, "problems")),
            samples=int(_needed(e, "samples")),
            truncated=finite(e.get("truncated")),
            no_answer=finite(e.get("no_answer")),
        )
        for stage, e in data.items()
    ]


def _needed(data: Mapping[str, Any], key: str) -> float:
    value = finite(data[key])
    if value is None:
        raise TypeError(f"'{key}' is no finite number")
    return value


def scale_of(evaluations: Sequence[Evaluation]) -> tuple[float, float]:
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
        colour: of the run.
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
