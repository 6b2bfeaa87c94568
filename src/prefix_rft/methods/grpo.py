"""GRPO (DeepSeekMath, arXiv 2402.03300)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def grpo(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """Advantage ``(R - mean) / std`` of the group, PPO clip, mean over rows of token means (Eq. 3).

    Args:
        beta: KL coefficient (the paper's is said to be 0.04; TRL's default, and ours, is 0).
        entropy_coef: entropy bonus.
    """
    return Method(
        name="grpo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary="on-policy rollouts, advantage normalised by the group's mean and std",
            source="arXiv 2402.03300, section 4.1, Eq. 3",
        ),
    )
