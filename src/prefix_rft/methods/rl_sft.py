"""RL with an SFT loss: the plainest mixture, a baseline of arXiv 2504.14945."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import EVERYONE, ROLLOUT, Method, Stream, regularisers
from prefix_rft.core.schedules import parse


def rl_sft(
    *,
    sft_coef: Any = 1.0,
    num_demonstrations: int = 1,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    truncated: str = "keep",
    aggregation: str = "sum_over_const",
    const: float | None = None,
) -> Method:
    """Dr. GRPO on the rollouts plus maximum likelihood of a demonstration of the same prompt.

    The baseline is over the rollouts alone: the demonstration's reward does not enter it.

    Args:
        sft_coef: coefficient of the SFT loss; a number or a schedule. The authors' 1.0 is that of a
            token mean: under our shared normaliser the same number weighs less.
        num_demonstrations: rows of the group that are whole demonstrations.
        epsilon: clip range.
        epsilon_high: upper clip range; None is ``epsilon``.
        delta: upper bound of the ratio (dual clip); None is none.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        truncated: ``mask`` takes the advantage from rows that ran into the length limit.
        aggregation: normaliser of both terms, see ``Method``; all rows count.
        const: of the sums.
    """
    return Method(
        name="rl_sft",
        summary="Dr. GRPO on rollouts plus SFT on a demonstration of the same prompt",
        source="baseline 'RL w/ SFT Loss' of arXiv 2504.14945",
        streams=(
            Stream("policy", ("policy",), "clip", "policy_group", EVERYONE),
            Stream("demonstration", ("demonstration",), "logp", 1.0, EVERYONE, parse(sft_coef)),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        num_demonstrations=num_demonstrations,
        aggregation=aggregation,
        const=const,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        truncated=truncated,
        unverified="the RL half of the authors' baseline: its clip and number of rollouts",
    )
