"""RL with an SFT loss: the plainest mixture, a baseline of arXiv 2504.14945."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import parse
from prefix_rft.core.stream import EVERYONE, ROLLOUT, Stream, regularisers


def rl_sft(
    *,
    sft_coef: Any = 1.0,
    num_demonstrations: int = 1,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """Dr. GRPO on the rollouts plus maximum likelihood of a demonstration of the same prompt.

    The baseline is over the rollouts alone: the demonstration's reward does not enter it.

    Args:
        sft_coef: coefficient of the SFT loss; a number or a schedule. The authors' 1.0 is that of a
            token mean: under our shared normaliser the same number weighs less.
        num_demonstrations: rows of the group that are whole demonstrations.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="rl_sft",
        streams=(
            Stream("policy", ("policy",), "clip", "policy_group", EVERYONE),
            Stream("demonstration", ("demonstration",), "logp", 1.0, EVERYONE, parse(sft_coef)),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="Dr. GRPO on rollouts plus SFT on a demonstration of the same prompt",
            source="baseline 'RL w/ SFT Loss' of arXiv 2504.14945",
            unverified="the RL half of the authors' baseline: its clip and number of rollouts",
        ),
    )
