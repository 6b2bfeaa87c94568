"""PrefixRL (arXiv 2601.18795, ICML 2026)."""

from __future__ import annotations

from prefix_rft.core.control import Control
from prefix_rft.core.fixed import Cuts
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import SAMPLED, Stream, regularisers


def prefixrl(
    *,
    cuts: int = 3,
    low: float = 0.4,
    high: float = 0.8,
    plain: float = 0.25,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """REINFORCE with a group's mean, on problems and on prefixes of right solutions of them.

    The paper's solutions are the base model's own: ``prefix-rft collect`` writes them.

    Args:
        cuts: places at which each solution is cut, drawn once for the run.
        low: the smallest share of a solution in a prefix.
        high: the largest one.
        plain: share of the groups that start at the prompt (paper: one problem to three cuts).
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="prefixrl",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(Cuts(cuts, low, high), plain=plain),
        baseline="mean",
        normaliser=Normaliser("token_mean"),
        about=About(
            summary="REINFORCE from three fixed prefixes of a right solution (context) and without",
            source="arXiv 2601.18795",
            unverified="no code was found; clip and normaliser are ours",
        ),
    )
