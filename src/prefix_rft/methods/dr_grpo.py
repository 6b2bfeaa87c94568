"""Dr. GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def dr_grpo(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """Advantage ``R - group mean``, PPO clip, token sums divided by a constant (section 3.2).

    Args:
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="dr_grpo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean",
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="GRPO without the two biases: no division by the std, none by the row's length",
            source="arXiv 2503.20783, section 3.2",
        ),
    )
