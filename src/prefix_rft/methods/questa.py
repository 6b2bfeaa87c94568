"""QuestA (arXiv 2507.13266)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from prefix_rft.core.control import Control, Law
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import Group, Start
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Stages(Law):
    """All rows start from the same share of a demonstration, which falls from stage to stage."""

    ratios: tuple[float, ...]

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At the share of the stage."""
        stage = min(len(self.ratios) - 1, group.step * len(self.ratios) // group.total_steps)
        return group.start(index, self.ratios[stage])


def questa(
    *,
    ratios: Any = (0.5, 0.25),
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO with part of the solution as a hint, half of it and then a quarter.

    Args:
        ratios: share of the demonstration in each stage; stages are equally long.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    listed = isinstance(ratios, (list, tuple)) and len(ratios) > 0
    if not listed or not all(isinstance(r, (int, float)) and 0 <= r <= 1 for r in ratios):
        raise UserError(f"ratios must be a list of numbers in [0, 1], got {ratios}")
    return Method(
        name="questa",
        streams=(
            Stream("policy", SAMPLED, "clip", "batch"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(Stages(tuple(ratios))),
        baseline="mean_std",
        about=About(
            summary="GRPO with half, then a quarter of the demonstration as context",
            source="arXiv 2507.13266 and the authors' partial_50_grpo.yaml",
            unverified="a variant: the hint stands in the answer, and ratios are not decoupled",
        ),
    )
