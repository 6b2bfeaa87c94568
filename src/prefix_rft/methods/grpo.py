"""GRPO (DeepSeekMath, arXiv 2402.03300)."""

from __future__ import annotations

from prefix_rft.core.method import ROLLOUT, SAMPLED, Method, Stream, regularisers


def grpo(
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
    """Advantage ``(R - mean) / std`` of the group, PPO clip, mean over rows of token means (Eq. 3).

    Args:
        epsilon: clip range.
        epsilon_high: upper clip range; None is ``epsilon``.
        delta: upper bound of the ratio (dual clip); None is none.
        beta: KL coefficient (the paper's is said to be 0.04; TRL's default, and ours, is 0).
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser, see ``Method``.
        const: of ``sum_over_const``.
    """
    return Method(
        name="grpo",
        summary="on-policy rollouts, advantage normalised by the group's mean and std",
        source="arXiv 2402.03300, section 4.1, Eq. 3",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        aggregation=aggregation,
        const=const,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        truncated=truncated,
    )
