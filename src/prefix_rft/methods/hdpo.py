"""HDPO, self-distillation where all rollouts fail (arXiv 2603.23871)."""

from __future__ import annotations

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Groups, Normaliser
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.teacher import ANSWER, Teacher


def hdpo(
    *, weight: float = 1.0, column: str = "answer", beta: float = 0.0, entropy_coef: float = 0.0
) -> Method:
    """GRPO, and of a group that fails: the policy that sees the answer samples, and teaches, it.

    Rows of such a group are sampled once more from the prompt that holds the answer. Those that are
    right are trained behind the plain prompt, towards the distribution that they came from:
    Jensen and Shannon's on the teacher's 64 likeliest tokens. No ratio: the policy did not sample
    them.

    Args:
        weight: the coefficient of that divergence (paper: not known).
        column: the column that the teacher's prompt shows.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="hdpo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            Stream(
                "guided", ("guided",), "divergence", 1.0, coefficient=constant(weight),
                aggregation="token_mean", counts="trained", teacher="teacher",
                divergence=Divergence(0.5, "teacher", 64),
            ),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        groups=Groups(all_wrong="guide", attempts=1),
        teachers=(Teacher(context="column", weights="live", template=ANSWER, column=column),),
        about=About(
            summary="GRPO; groups that fail are sampled by the policy that sees the answer",
            source="arXiv 2603.23871",
            unverified="weight, guided rows of a group, whose top 64, template: no code was found",
        ),
    )  # fmt: skip
