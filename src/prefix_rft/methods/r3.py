"""R3, reverse curriculum (arXiv 2402.05808, ICML 2024), without its critic."""

from __future__ import annotations

import random
from dataclasses import dataclass

from prefix_rft.core.control import Control, Law
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import Group, Start
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import check_range


@dataclass(frozen=True)
class StepBoundary(Law):
    """All rows of a group start at one boundary between steps of a demonstration, drawn uniformly.

    The prompt itself is one of the boundaries, the end is not.
    """

    chunks: int
    needs_boundaries = "line"

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At one of the boundaries."""
        boundaries = group.boundaries[index] if group.boundaries else ()
        equal = {group.start(index, k / self.chunks).length for k in range(1, self.chunks)}
        room = group.start(index, 1.0).length
        lengths = [0, *sorted(n for n in (boundaries or equal) if 0 < n <= room)]
        length = rng.choice(lengths)
        return Start(index, length, length / group.lengths[index])


def r3(
    *,
    chunks: int = 5,
    beta: float = 0.05,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO from states along a demonstration; what came before is context.

    Args:
        chunks: where a demonstration has no line breaks, it is cut into so many equal parts.
        beta: KL coefficient, as a term of the loss (the authors' code: 0.05 in the reward).
        entropy_coef: entropy bonus.
    """
    check_range("chunks", chunks, 1)
    return Method(
        name="r3",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(StepBoundary(chunks)),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary="GRPO from start states along a demonstration (context); no critic",
            source="arXiv 2402.05808 and the authors' main.py",
            unverified="a variant: the paper has PPO with a critic and GAE where this has groups",
        ),
    )
