"""POPE (arXiv 2601.18779)."""

from __future__ import annotations

from prefix_rft.core.control import Control
from prefix_rft.core.laws import Ladder
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import check_range


def pope(
    *,
    first_ratio: float = 0.1,
    ratio_step: float = 0.1,
    guided_share: float = 0.5,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO on plain and guided rollouts side by side; the guide is context, never a target.

    Plain rows are compared with plain ones, guided with guided ones.

    Args:
        first_ratio: the share of the demonstration in the prefix, at an example's first visit.
        ratio_step: the amount by which it grows when all guided rows fail.
        guided_share: share of a group's rows that are guided (paper: 1:1).
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    check_range("first_ratio", first_ratio, 0.0, 1.0)
    check_range("ratio_step", ratio_step, 0.0, 1.0)
    check_range("guided_share", guided_share, 0.0, 1.0)
    return Method(
        name="pope",
        streams=(
            Stream("policy", ("policy",), "clip", "policy_group", SAMPLED),
            Stream("guided", ("continuation",), "clip", "hybrid_group", SAMPLED),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(Ladder(first_ratio, ratio_step), guided_share),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary=(
                "GRPO on plain rows and on rows guided by the shortest rewarded prefix (context)"
            ),
            source="arXiv 2601.18779",
            unverified=(
                "the authors' code could not be read; the search replaces their precomputed one"
            ),
        ),
    )
