"""Schedules: a number as a function of the training step, built from plain data.

A recipe writes a schedule as a number (constant) or as a mapping
``{kind: cosine, start: 0.95, end: 0.05, steps: 500, delay: 0}``. ``steps: null`` means the whole
run, so the same data serves runs of any length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

KINDS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value that moves from ``start`` to ``end`` over ``steps`` steps, after ``delay`` steps.

    Before the delay has passed it is ``start``; after ``delay + steps`` steps it stays at ``end``.
    Prefix-RFT's lower bound is ``cosine(0.95, 0.05)`` over the run (arXiv 2507.01679 v3, A.2):
    ``low_t = 0.05 + 0.90 * (1 + cos(pi * t / T)) / 2``.

    Raises:
        ValueError: unknown kind, negative delay, or ``steps`` below 1.
    """

    kind: str = "constant"
    start: float = 0.0
    end: float | None = None
    steps: int | None = None
    delay: int = 0

    def __post_init__(self) -> None:
        choose("schedule kind", self.kind, KINDS)
        if self.steps is not None and self.steps < 1:
            raise UserError(f"schedule steps must be at least 1, got {self.steps}")
        if self.delay < 0:
            raise UserError(f"schedule delay must be at least 0, got {self.delay}")
        if self.kind == "constant" and self.end not in (None, self.start):
            raise UserError("a constant schedule has no end: choose kind linear or cosine")
        if self.kind != "constant" and self.end is None:
            raise UserError(f"a {self.kind} schedule needs an end value")

    def over(self, total_steps: int) -> Schedule:
        """The same schedule with an open horizon bound to the run's number of steps."""
        if self.steps is not None:
            return self
        return replace(self, steps=max(1, total_steps - self.delay))

    def __call__(self, step: int) -> float:
        """The value at ``step`` (0-based optimizer step).

        Raises:
            ValueError: the horizon is still open; call :meth:`over` first.
        """
        if self.kind == "constant" or self.end is None:
            return float(self.start)
        if self.steps is None:
            raise UserError(f"this {self.kind} schedule has no horizon: bind it with over(steps)")
        progress = min(1.0, max(0, step - self.delay) / self.steps)
        if self.kind == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * progress

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that the schedule can take."""
        end = self.start if self.end is None else self.end
        return min(self.start, end), max(self.start, end)


def constant(value: float) -> Schedule:
    """``value`` at every step."""
    return Schedule("constant", float(value))


def linear(start: float, end: float, steps: int | None = None) -> Schedule:
    """A straight line from ``start`` to ``end``; ``steps=None`` means the whole run."""
    return Schedule("linear", float(start), float(end), steps)


def cosine(start: float, end: float, steps: int | None = None) -> Schedule:
    """Half a cosine from ``start`` to ``end``; ``steps=None`` means the whole run."""
    return Schedule("cosine", float(start), float(end), steps)


def parse(data: Schedule | float | Mapping[str, Any]) -> Schedule:
    """A schedule from what a recipe holds: a number, a mapping, or a schedule.

    Raises:
        ValueError: a key or a value is not understood.
    """
    if isinstance(data, Schedule):
        return data
    if isinstance(data, bool) or not isinstance(data, (int, float, Mapping)):
        raise UserError(f"a schedule is a number or a mapping with a kind, got {data!r}")
    if isinstance(data, Mapping):
        refuse_unknown("schedule key", data, [f.name for f in fields(Schedule)])
        check_types("schedule key", data, {f.name: str(f.type) for f in fields(Schedule)})
        return Schedule(**data)
    return constant(data)


@dataclass(frozen=True)
class Following:
    """A coefficient that goes to 0 as a metric reaches what it is compared with.

    ``max(1 - mean/reference, 0)`` over the last ``window`` updates, 1 before the first; once the
    mean has reached the reference it stays 0 (GATS, arXiv 2609.37898).

    Attributes:
        metric: a metric that every step logs.
        reference: what is to be reached: the teacher's own score.
        window: updates whose mean counts.
        latch: what has once been 0 stays 0.
    """

    metric: str = "policy/reward"
    reference: float = 1.0
    window: int = 5
    latch: bool = True

    def __post_init__(self) -> None:
        if self.reference <= 0 or self.window < 1:
            raise UserError(
                "a coefficient that follows a metric needs a positive reference and a window of at "
                f"least 1, got {self.reference} and {self.window}"
            )

    def value(self, seen: Sequence[float]) -> float:
        """The coefficient after updates in which the metric had these values, the last one last.

        What has reached the reference is written down as a last value of infinity; see
        :meth:`after`.
        """
        if not seen:
            return 1.0
        return max(1.0 - sum(seen) / len(seen) / self.reference, 0.0)

    def after(self, seen: Sequence[float], metric: float) -> tuple[float, ...]:
        """What to remember once an update has had this value of the metric.

        Args:
            seen: what was remembered before.
            metric: the value.
        """
        if seen and seen[-1] == math.inf:
            return tuple(seen)
        now = (*seen, float(metric))[-self.window :]
        return (math.inf,) if self.latch and self.value(now) == 0.0 else now
