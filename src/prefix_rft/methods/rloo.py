"""RLOO (arXiv 2402.14740)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.support.errors import choose

RATIOS = {"none": "logp", "old": "ratio"}


def rloo(
    *,
    ratio: str = "none",
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """REINFORCE with a leave-one-out baseline: ``n/(n-1) (R - mean)``, no clip (section 3).

    A completion is one action: its tokens' log-probabilities are summed, and the rows averaged.

    Args:
        ratio: ``none`` is the paper's REINFORCE; ``old`` multiplies by the token's importance
            ratio, for several updates from one generation.
        beta: KL coefficient, as a term of the loss; the paper takes the KL from the reward.
        entropy_coef: entropy bonus.
    """
    choose("ratio", ratio, RATIOS)
    return Method(
        name="rloo",
        streams=(
            Stream("policy", SAMPLED, RATIOS[ratio], "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="leave_one_out",
        normaliser=Normaliser("sum_over_const", const=1.0),
        about=About(
            summary="REINFORCE against the mean of the other rollouts, no clip",
            source="arXiv 2402.14740, section 3",
        ),
    )
