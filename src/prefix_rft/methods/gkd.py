"""GKD, generalised knowledge distillation from another model (arXiv 2306.13649)."""

from __future__ import annotations

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import OnPolicy, RandomPrefix
from prefix_rft.core.stream import SAMPLED, Stream
from prefix_rft.core.teacher import Teacher


def gkd(*, path: str | None = None, num_demonstrations: int = 0) -> Method:
    """The divergence from another model, on the policy's own rollouts and on demonstrations.

    No reward is read. TRL's GKDTrainer throws a coin for each step (``lmbda``, 0.5); here the share
    of demonstrations is that of the rows of a group.

    Args:
        path: the teacher: a folder or a Hub name of a model with the policy's vocabulary.
        num_demonstrations: rows of the group that are whole demonstrations.
    """
    whole = num_demonstrations > 0
    return Method(
        name="gkd",
        streams=(
            Stream(
                "teacher", (*SAMPLED, *(("demonstration",) if whole else ())), "divergence", 1.0,
                counts="trained", teacher="teacher", divergence=Divergence(0.5),
            ),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations) if whole else OnPolicy(),
        teachers=(Teacher(context="none", weights="model", path=path),),
        about=About(
            summary="another model's distribution at every token of the policy's rollouts",
            source="arXiv 2306.13649; TRL's GKDTrainer",
        ),
    )  # fmt: skip
