"""SuperRL (arXiv 2506.01096)."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import parse
from prefix_rft.core.stream import EVERYONE, Stream, regularisers


def superrl(
    *,
    sft_coef: Any = 1.0,
    num_demonstrations: int = 1,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """RL on a prompt with any rewarded rollout, SFT on its demonstration otherwise.

    Args:
        sft_coef: coefficient of the SFT term.
        num_demonstrations: rows of the group that are whole demonstrations, trained or not.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="superrl",
        streams=(
            Stream("policy", ("policy",), "clip", "policy_group", EVERYONE, gate=(0.0, 1.0)),
            Stream(
                "demonstration",
                ("demonstration",),
                "logp",
                1.0,
                EVERYONE,
                parse(sft_coef),
                gate=(-1.0, 0.0),
            ),
            *regularisers(beta, entropy_coef, ("policy",), EVERYONE, (0.0, 1.0)),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        baseline="mean_std",
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="a prompt gets GRPO if a rollout is rewarded, else SFT on its demonstration",
            source="arXiv 2506.01096",
            unverified="the authors' code was not read; their learnt mixing is not built",
        ),
    )
