"""LUFFY (arXiv 2504.14945, NeurIPS 2025)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import EVERYONE, SAMPLED, Stream, regularisers
from prefix_rft.core.weights import saturating


def luffy(
    *,
    num_demonstrations: int = 1,
    gamma: float | None = 0.1,
    beta: float = 0.0,
    entropy_coef: float = 0.001,
) -> Method:
    """A whole demonstration in the group, as off-policy data: ``A f(pi)``, ``f(x) = x/(x+gamma)``.

    Rollouts: ``A pi/pi_old`` without clip. The advantage is ``R - mean`` over all rows, the
    demonstration among them: where all rollouts of a group of 8 fail it has +7/8.

    Args:
        num_demonstrations: rows of the group that are whole demonstrations (paper: 1 of 8).
        gamma: the constant of the shaping; None is plain ``A pi``.
        beta: KL coefficient (authors' code: none).
        entropy_coef: entropy bonus (authors' code: 0.001).
    """
    shape = None if gamma is None else saturating(gamma)
    return Method(
        name="luffy",
        streams=(
            Stream("policy", SAMPLED, "ratio", "group", EVERYONE),
            Stream(
                "demonstration", ("demonstration",), "likelihood", "group", EVERYONE, shape=shape
            ),
            *regularisers(beta, entropy_coef, EVERYONE),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="a whole demonstration in the group as off-policy data with policy shaping",
            source="arXiv 2504.14945 and the authors' compute_token_on_off_policy_loss",
        ),
    )
