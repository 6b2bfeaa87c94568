"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Clip
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def cispo(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """``sg(clip(rho, 1-epsilon, 1+epsilon_high)) A log pi``: no token loses its gradient.

    There is no lower clip, as in the paper, and the weight is at most 5: the paper gives no value,
    TRL recommends this one.

    Args:
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="cispo",
        streams=(
            Stream("policy", SAMPLED, "cispo", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        clip=Clip(low=1.0, high=4.0),
        about=About(
            summary="REINFORCE with the clipped importance ratio as a weight",
            source="arXiv 2506.13585",
        ),
    )
