"""CHORD (arXiv 2508.11408, ICLR 2026)."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import Schedule, cosine, parse
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.core.weights import uncertainty
from prefix_rft.support.errors import check_range


def chord(
    *,
    phi: bool = True,
    mu: Any = None,
    num_demonstrations: int = 1,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """``(1-mu) GRPO + mu SFT``: CHORD-phi weights the SFT tokens by ``p(1-p)``, CHORD-mu fades mu.

    Args:
        phi: weight the demonstration's tokens by ``sg(p(1-p))`` (CHORD-phi).
        mu: share of the SFT loss, a number or a schedule. By default 0.1 with ``phi``, else a
            cosine from 0.9 to 0.05 over 200 steps (CHORD-mu).
        num_demonstrations: rows of the group that are whole demonstrations.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    share = parse(mu if mu is not None else 0.1 if phi else cosine(0.9, 0.05, 200))
    for bound in share.bounds():
        check_range("mu", bound, 0.0, 1.0)
    rest = Schedule(
        share.kind,
        1.0 - share.start,
        None if share.end is None else 1.0 - share.end,
        share.steps,
        share.delay,
    )
    weight = uncertainty() if phi else None
    return Method(
        name="chord",
        streams=(
            Stream("policy", SAMPLED, "clip", "sampled_group", coefficient=rest),
            Stream(
                "demonstration", ("demonstration",), "logp", 1.0, coefficient=share, weight=weight
            ),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        baseline="mean_std",
        about=About(
            summary=(
                "GRPO and SFT in one loss, with a fading share (mu) or token weights p(1-p) (phi)"
            ),
            source="arXiv 2508.11408 and Trinity-RFT's chord_policy_loss",
        ),
    )
