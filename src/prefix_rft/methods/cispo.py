"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from prefix_rft.core.method import ROLLOUT, SAMPLED, Method, Stream, regularisers


def cispo(
    *,
    epsilon: float = 1.0,
    epsilon_high: float | None = 4.0,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    truncated: str = "keep",
    aggregation: str = "token_mean",
    const: float | None = None,
) -> Method:
    """``sg(clip(rho, 1-epsilon, 1+epsilon_high)) A log pi``: no token loses its gradient.

    Args:
        epsilon: lower clip range; 1 is none, as in the paper.
        epsilon_high: upper clip range; the weight is at most ``1 + epsilon_high`` (the paper gives
            no value; TRL recommends a cap of 5).
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser, see ``Method``.
        const: of the sums.
    """
    return Method(
        name="cispo",
        summary="REINFORCE with the clipped importance ratio as a weight",
        source="arXiv 2506.13585",
        streams=(
            Stream("policy", SAMPLED, "cispo", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        aggregation=aggregation,
        const=const,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        truncated=truncated,
    )
