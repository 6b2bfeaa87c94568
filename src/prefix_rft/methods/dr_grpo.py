"""Dr. GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from prefix_rft.core.method import ROLLOUT, SAMPLED, Method, Stream, regularisers


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
        summary="GRPO without the two biases: no division by the std, none by the row's length",
        source="arXiv 2503.20783, section 3.2",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean",
        aggregation="sum_over_const",
    )
