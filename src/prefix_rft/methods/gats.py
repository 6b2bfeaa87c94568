"""GATS, "Guide, Then Let Go" (arXiv 2609.37898)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.schedules import Following
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.teacher import Teacher
from prefix_rft.core.weights import gap


def gats(
    *,
    path: str | None = None,
    reference: float = 1.0,
    window: int = 5,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO beside a teacher, whose part is ``max(1 - M_S/M_T, 0)`` and ends for good at 0.

    ``M_S`` is the policy's mean reward in the last updates, ``M_T`` the teacher's own.

    Args:
        path: the teacher: a folder or a Hub name of a model with the policy's vocabulary.
        reference: the teacher's own mean reward on these prompts: measure it, with ``eval``.
        window: updates whose mean reward counts.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    follows = Following("policy/reward", reference, window)
    return Method(
        name="gats",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            Stream(
                "teacher", SAMPLED, "ratio", 1.0, ROLLOUT, follows, gap(), teacher="teacher",
                taught=True,
            ),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        teachers=(Teacher(context="none", weights="model", path=path),),
        about=About(
            summary="GRPO with a teacher that withdraws as the policy reaches its score",
            source="arXiv 2609.37898, section 4",
            unverified="the authors' code, which could not be fetched",
        ),
    )  # fmt: skip
