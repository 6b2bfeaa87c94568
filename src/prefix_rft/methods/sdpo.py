"""SDPO, self-distillation from a solved sibling (arXiv 2601.20802)."""

from __future__ import annotations

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream
from prefix_rft.core.teacher import SOLVED, Teacher
from prefix_rft.core.weights import staleness


def sdpo(*, policy: float = 0.0, ratio_cap: float = 2.0) -> Method:
    """The divergence of each rollout from a slow copy of the policy that sees a solved sibling.

    The sibling is the first solved other row of the group; a row without one is not trained, so a
    group without a success, or a lone success, trains nothing by itself.

    Args:
        policy: the coefficient of Dr. GRPO's term beside it (paper: a mixture; authors' code: 0).
        ratio_cap: the most that ``pi / pi_old`` weighs a token (authors: 2).
    """
    beside = (Stream("policy", SAMPLED, "clip", "group", ROLLOUT, constant(policy)),)
    return Method(
        name="sdpo",
        streams=(
            Stream(
                "teacher", SAMPLED, "divergence", 1.0, weight=staleness(ratio_cap),
                counts="trained", teacher="teacher", divergence=Divergence(0.5, "student", 100),
            ),
            *(beside if policy else ()),
        ),
        teachers=(Teacher(context="peer", weights="ema", template=SOLVED, rate=0.05),),
        about=About(
            summary="each rollout follows a slow copy of the policy that sees a solved one",
            source="arXiv 2601.20802 and the authors' compute_self_distillation_loss (0e6d510)",
        ),
    )  # fmt: skip
