"""GSPO (arXiv 2507.18071)."""

from __future__ import annotations

from prefix_rft.core.method import ROLLOUT, SAMPLED, Method, Stream, regularisers


def gspo(
    *,
    epsilon: float = 3e-4,
    epsilon_high: float | None = 4e-4,
    delta: float | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    truncated: str = "keep",
    aggregation: str = "seq_mean_token_mean",
    const: float | None = None,
) -> Method:
    """GRPO with one importance ratio for a whole row, ``(pi/pi_old)^(1/|y|)`` (Eq. 5 and 7).

    Args:
        epsilon: lower clip range (section 5.1).
        epsilon_high: upper clip range (section 5.1).
        delta: upper bound of the ratio (dual clip); None is none.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser, see ``Method``.
        const: of the sums.
    """
    return Method(
        name="gspo",
        summary="GRPO whose ratio and clip are those of the whole row",
        source="arXiv 2507.18071, Eq. 5 and 7",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT, level="sequence"),
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
