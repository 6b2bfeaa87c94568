"""RLSD, self-distillation as a weight on the reward's credit (arXiv 2604.03128)."""

from __future__ import annotations

from dataclasses import replace

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Clip, Normaliser
from prefix_rft.core.schedules import Schedule
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.teacher import ANSWER, Teacher
from prefix_rft.core.weights import evidence


def rlsd(
    *,
    eps_w: float = 0.2,
    credit: float = 0.5,
    steps: int = 50,
    column: str = "answer",
    every: int = 20,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO whose advantage is spread over a row's tokens by what a teacher that knows more says.

    ``A_t = A ((1 - l) + l clip(exp(sign(A) D_t), 1 - eps_w, 1 + eps_w))``, ``l`` from ``credit`` to
    0 over ``steps``. It is linear in ``l``: two streams, exactly. A row that is not taught has
    weight 1, which is plain GRPO. The teacher only weighs, it is never a target.

    Args:
        eps_w: how far a token's weight may be from 1.
        credit: ``l`` at the start.
        steps: optimizer steps until it is 0, and the teacher is asked no more.
        column: the column that the teacher knows.
        every: optimizer steps between two copies of the policy's weights to the teacher.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    rest = Schedule("linear", 1.0 - credit, 1.0, steps)
    falls = Schedule("linear", credit, 0.0, steps)
    knows = Teacher(
        context="column", weights="snapshot", template=ANSWER, column=column, every=every
    )
    group = Stream("policy", SAMPLED, "clip", "group", ROLLOUT, rest)
    weighed = {"name": "credit", "weight": evidence(eps_w), "teacher": knows.name}
    return Method(
        name="rlsd",
        streams=(
            group,
            replace(group, coefficient=falls, **weighed),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        clip=Clip(0.2, 0.28),
        teachers=(knows,),
        about=About(
            summary="GRPO, its advantage spread over tokens by the policy that knows the answer",
            source="arXiv 2604.03128, algorithm 1",
            unverified="the authors' code, which was not read first hand",
        ),
    )
