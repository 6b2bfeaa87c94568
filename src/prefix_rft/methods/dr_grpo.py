"""Dr. GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from prefix_rft.core.method import ROLLOUT, SAMPLED, Method, Stream, regularisers


def dr_grpo(
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    truncated: str = "keep",
    aggregation: str = "sum_over_const",
    const: float | None = None,
) -> Method:
    """Advantage ``R - group mean``, PPO clip, token sums divided by a constant (section 3.2).

    Args:
        epsilon: clip range.
        epsilon_high: upper clip range; None is ``epsilon``.
        delta: upper bound of the ratio (dual clip); None is none.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser, see ``Method``.
        const: of ``sum_over_const``.
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
        aggregation=aggregation,
        const=const,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        truncated=truncated,
    )
