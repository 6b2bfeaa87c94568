"""AdaBack, adaptive backtracking (arXiv 2506.18110, ICLR 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import Group, Planner, Record, Starts
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import check_range


@dataclass(frozen=True)
class Interval(Planner):
    """Each example keeps an interval of ratios; a group's rows share one drawn from it.

    A group whose mean reward is below ``threshold`` raises the lower end to its ratio; another one
    lowers the upper end to it and the lower end to 0. A closed interval that fails opens up to 1.
    A new example starts from a moving average of all intervals.
    """

    threshold: float
    ema: float
    plain: float

    def bounds(self, group: Group) -> tuple[float, float]:
        """The example's interval, or the average one."""
        record = group.own or group.shared
        return record.get("low", 0.0), record.get("high", 1.0)

    def starts(self, group: Group) -> Starts:
        """One start for the whole group; now and then none."""
        rng = group.random()
        index, plain = rng.randrange(len(group.lengths)), rng.random() < self.plain
        low, high = self.bounds(group)
        start = group.start(index, low + (high - low) * rng.random())
        return group.everyone(None if plain or not start.length else start)

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """Move the interval, and the average towards it."""
        graded = [r for r in rewards if not math.isnan(r)]
        start = starts[0]
        fails = bool(graded) and sum(graded) / len(graded) < self.threshold
        low, high = self.bounds(group)
        helps = any(group.start(i, high).length for i in range(len(group.lengths)))
        if not graded or (fails and start is None and helps):
            return group.own, group.shared  # that it fails without a prefix says nothing new
        ratio = 0.0 if start is None or start.ratio is None else start.ratio
        if not fails:
            low, high = 0.0, ratio
        else:
            # An interval that has closed and fails opens again: the rule alone would be stuck.
            low, high = ratio, high if helps and high > ratio else 1.0
        shared = {
            "low": self.ema * group.shared.get("low", 0.0) + (1.0 - self.ema) * low,
            "high": self.ema * group.shared.get("high", 1.0) + (1.0 - self.ema) * high,
        }
        return {"low": low, "high": high}, shared


def adaback(
    *,
    threshold: float = 0.5,
    ema: float = 0.99,
    plain: float = 0.1,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO from a prefix, as context, whose length adapts to each example.

    Args:
        threshold: mean reward of a group below which more is revealed next time.
        ema: the decay of the average interval from which new examples start.
        plain: probability of a group without prefix.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    check_range("ema", ema, 0.0, 1.0)
    check_range("plain", plain, 0.0, 1.0)
    return Method(
        name="adaback",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Interval(threshold, ema, plain),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary="GRPO from a prefix (context) whose length each example finds for itself",
            source="arXiv 2506.18110",
            unverified="no code was found; threshold, average, plain groups and reopening are ours",
        ),
    )
