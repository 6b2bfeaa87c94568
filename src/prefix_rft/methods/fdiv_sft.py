"""f-divergence SFT: experimental, a form derived here and not the paper's (arXiv 2507.00018)."""

from __future__ import annotations

import math

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream
from prefix_rft.core.weights import f_divergence
from prefix_rft.support.errors import check_range


def fdiv_sft(
    *,
    divergence: str = "pearson",
    beta: float = 1.0,
    floor: float = 0.0,
    cap: float = 16.0,
) -> Method:
    """SFT with tokens weighted by ``beta phi'(beta log pi/pi_ref)``. Experimental, derived.

    In full the loss is ``-phi(beta log pi/pi_ref + V(x)) + V(x)`` with the prompt's value V. Here V
    is 0; a V that is free for each prompt makes every divergence plain SFT, so what this method
    does beyond SFT comes from that choice, which is ours. See docs/methods/fdiv_sft.md.

    Args:
        divergence: ``total_variation`` (plain SFT), ``pearson`` or ``squared_hellinger``.
        beta: the scale of the implicit reward.
        floor: smallest weight; 0 keeps Pearson's from turning negative beyond x = 2.
        cap: largest weight; it holds the squared Hellinger's before its pole at x = -1.
    """
    weight = f_divergence(divergence, beta, floor, cap)
    check_range("floor", floor, -math.inf, cap)
    return Method(
        name="fdiv_sft",
        streams=(Stream("demonstration", ("demonstration",), "logp", 1.0, weight=weight),),
        rows=RandomPrefix(num_demonstrations=1),
        about=About(
            summary=(
                "experimental: SFT with weights derived from an f-divergence to the initial model"
            ),
            source="derived here from the idea of arXiv 2507.00018",
            unverified="the paper's losses: this form is derived, not theirs",
        ),
    )
