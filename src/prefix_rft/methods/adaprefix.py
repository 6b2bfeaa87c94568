"""AdaPrefix-GRPO (arXiv 2607.07674)."""

from __future__ import annotations

from prefix_rft.core.control import Control
from prefix_rft.core.laws import Integral
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import SAMPLED, Stream, regularisers


def adaprefix(
    *,
    target: float = 0.5,
    gain: float = 0.2,
    average: float = 0.8,
    every: int = 10,
    first: float = 0.5,
    withdraw: float = 0.5,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO from a prefix, as context, that follows a moving average of each example's success.

    Args:
        target: the success rate to hold; the offset of each problem in the paper is left out.
        gain: how much the share moves with the distance from the target.
        average: the decay of the moving average of an example's success rate.
        every: optimizer steps between two moves of an example's share (paper: 10).
        first: the share at the first visits.
        withdraw: share of the run after which the largest share falls, to 0 at the end.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="adaprefix",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(
            Integral(gain, target, first, average=average, every=every), withdraw=withdraw
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary="GRPO from a prefix (context) that follows each example's mean success",
            source="arXiv 2607.07674",
            unverified=(
                "no code was found, and gain, average, first share, withdrawal and the offset of "
                "each problem are not known"
            ),
        ),
    )
