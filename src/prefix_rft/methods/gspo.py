"""GSPO (arXiv 2507.18071)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Clip, Normaliser
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def gspo(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO with one importance ratio for a whole row, ``(pi/pi_old)^(1/|y|)`` (Eq. 5 and 7).

    Clip ranges 3e-4 and 4e-4, as in the paper.

    Args:
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="gspo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT, level="sequence"),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        clip=Clip(low=0.0003, high=0.0004),
        about=About(
            summary="GRPO whose ratio and clip are those of the whole row",
            source="arXiv 2507.18071, Eq. 5 and 7",
        ),
    )
