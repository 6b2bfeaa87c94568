"""BREAD (arXiv 2506.17211, NeurIPS 2025)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Groups, Normaliser
from prefix_rft.core.planner import Lengthening
from prefix_rft.core.stream import SAMPLED, Stream, regularisers


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
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Lengthening(),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        groups=Groups(all_wrong="lengthen"),
        about=About(
            summary=(
                "GRPO; a group that fails branches from a demonstration prefix, which is context"
            ),
            source="arXiv 2506.17211",
            unverified="no code was found; the search for the prefix length is ours",
        ),
    )
