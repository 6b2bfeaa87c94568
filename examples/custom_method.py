"""A method of your own, in one file: what the built-in ones are made of is all here.

It does two things that no built-in method does:

- rows: a group's first rows start from prefixes that get shorter as the example gets easier. What
  the planner remembers of an example (its solve rate) is saved with every checkpoint;
- streams: prefix tokens get maximum likelihood, weighted by how surprising each of them is.

    prefix-rft task countdown data/countdown
    prefix-rft train examples/custom_method.yaml
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Clip, Normaliser
from prefix_rft.core.planner import Group, Planner, Record, Starts
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream
from prefix_rft.core.weights import Weight


@dataclass(frozen=True)
class AsNeeded(Planner):
    """Reveal the more of a demonstration the less often the example has been solved."""

    rows: int

    def starts(self, group: Group) -> Starts:
        """The first rows share a prefix; the others are on-policy."""
        solve_rate = group.own.get("solve_rate", 0.5)
        index = group.random().randrange(len(group.lengths))
        start = group.start(index, 0.9 * (1.0 - solve_rate))
        return tuple(start if row < self.rows else None for row in range(group.rows))

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """A moving average of the solve rate of the on-policy rows."""
        own = [r > 0 for r, s in zip(rewards, starts, strict=True) if s is None and r == r]
        if not own:
            return group.own, group.shared
        now = sum(own) / len(own)
        old = group.own.get("solve_rate", now)
        return {"solve_rate": 0.5 * old + 0.5 * now}, group.shared


def surprise(limit: float) -> Weight:
    """``min(-log p, limit) / limit``: 0 for what the policy expects, 1 for what it does not."""
    return Weight(
        f"min(-log p, {limit:g})/{limit:g}", lambda s: (-s.logp_BT).clamp(max=limit) / limit
    )


def as_needed(
    *, rows: int = 2, prefix_coef: float = 0.1, limit: float = -math.log(0.1), epsilon: float = 0.2
) -> Method:
    """GRPO with prefixes as long as an example needs, whose surprising tokens are imitated.

    Args:
        rows: of a group that start from a prefix.
        prefix_coef: of the likelihood of the prefix.
        limit: surprise, in nats, from which a token has full weight.
        epsilon: clip range.
    """
    imitation = Stream(
        "prefix",
        ("prefix",),
        surrogate="logp",
        advantage=1.0,
        coefficient=constant(prefix_coef),
        weight=surprise(limit),
        aggregation="token_mean",
    )
    return Method(
        name="as_needed",
        streams=(Stream("policy", SAMPLED, "clip", "group", ROLLOUT), imitation),
        rows=AsNeeded(rows),
        baseline="mean_std",
        normaliser=Normaliser("token_mean"),
        clip=Clip(low=epsilon),
        about=About(
            summary=(
                "GRPO with prefixes as long as an example needs, and imitation of what surprises"
            ),
            source="an example",
        ),
    )
