"""BREAD (arXiv 2506.17211, NeurIPS 2025)."""

from __future__ import annotations

from prefix_rft.core.method import SAMPLED, Method, Stream, regularisers
from prefix_rft.core.planner import Lengthening


def bread(
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    truncated: str = "keep",
    aggregation: str = "seq_mean_token_mean",
    const: float | None = None,
) -> Method:
    """GRPO; a group that fails as a whole is sampled anew from a longer and longer prefix.

    The prefix is context: no gradient reaches it. The k-th of n ``attempts`` starts from
    ``k/(n+1)`` of the demonstration.

    Args:
        epsilon: clip range.
        epsilon_high: upper clip range; None is ``epsilon``.
        delta: upper bound of the ratio (dual clip); None is none.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser, see ``Method``; prefixes are not counted.
        const: of the sums.
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
        aggregation=aggregation,
        const=const,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        truncated=truncated,
        unverified="no code was found; the search for the prefix length is ours",
    )
