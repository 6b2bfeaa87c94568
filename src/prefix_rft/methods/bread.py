"""BREAD (arXiv 2506.17211, NeurIPS 2025)."""

from __future__ import annotations

from prefix_rft.core.method import SAMPLED, Method, Stream, regularisers
from prefix_rft.core.planner import Lengthening


def bread(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO; a group that fails as a whole is sampled anew from a longer and longer prefix.

    The prefix is context: no gradient reaches it. The k-th of n ``attempts`` starts from
    ``k/(n+1)`` of the demonstration.

    Args:
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="bread",
        summary="GRPO; a group that fails branches from a demonstration prefix, which is context",
        source="arXiv 2506.17211",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        planner=Lengthening(),
        all_wrong="lengthen",
        baseline="mean_std",
        aggregation="seq_mean_token_mean",
        unverified="no code was found; the search for the prefix length is ours",
    )
