"""HPT, hybrid post-training (arXiv 2509.04419)."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import parse
from prefix_rft.core.stream import EVERYONE, Stream, regularisers


def hpt(
    *,
    gate: float = 0.0,
    sft_coef: Any = 1.0,
    num_demonstrations: int = 1,
    beta: float = 0.0,
    entropy_coef: float = 0.001,
) -> Method:
    """RL on a prompt whose rollouts succeed often enough, else SFT on its demonstration.

    The gate: solve rate of the rollouts above ``gate`` means RL, ``A pi/pi_old`` without clip and
    without std as in the authors' code.

    Args:
        gate: solve rate at or below which a prompt gets SFT (0, or 2/8 for Llama).
        sft_coef: coefficient of the SFT term. The authors' 1.0 (0.3 for the 1.5B model) is that of
            a token mean: under our shared normaliser the same number weighs less.
        num_demonstrations: rows of the group that are whole demonstrations, trained or not.
        beta: KL coefficient.
        entropy_coef: entropy bonus (authors' code: 0.001).
    """
    return Method(
        name="hpt",
        streams=(
            Stream("policy", ("policy",), "ratio", "policy_group", EVERYONE, gate=(gate, 1.0)),
            Stream(
                "demonstration",
                ("demonstration",),
                "logp",
                1.0,
                EVERYONE,
                parse(sft_coef),
                gate=(-1.0, gate),
            ),
            *regularisers(beta, entropy_coef, ("policy",), EVERYONE, (gate, 1.0)),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary=(
                "a prompt gets RL where its rollouts succeed, SFT on its demonstration where not"
            ),
            source="arXiv 2509.04419 and the authors' select_on_off_ada_balance",
        ),
    )
