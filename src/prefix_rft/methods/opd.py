"""On-policy distillation from another model (Thinking Machines Lab, 2025; also MiniLLM, GKD)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.teacher import Teacher
from prefix_rft.core.weights import gap


def opd(
    *,
    path: str | None = None,
    teachers: Mapping[str, Mapping[str, Any]] | None = None,
    coef: float = 1.0,
    rewards: bool = False,
    limit: float | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """``rho D`` on the policy's own rollouts, ``D = log q - log p`` of a teacher, no clip.

    Args:
        path: the teacher: a folder or a Hub name of a model with the policy's vocabulary.
        teachers: several of them, by name: each a ``path``, and ``only`` the rows it is for, such
            as ``{data_source: math}``.
        coef: the coefficient of the distillation.
        rewards: GRPO's term beside it (advantages that are centred, then added).
        limit: D is held within plus and minus this.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    several = {"teacher": {"path": path}} if teachers is None else teachers
    told = Stream(
        "teacher", SAMPLED, "ratio", 1.0, ROLLOUT, constant(coef), gap(limit), teacher="teacher",
        taught=True,
    )  # fmt: skip
    return Method(
        name="opd",
        streams=(
            *(replace(told, name=name, teacher=name) for name in several),
            *((Stream("policy", SAMPLED, "clip", "group", ROLLOUT),) if rewards else ()),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        teachers=tuple(
            Teacher(name, context="none", weights="model", **own) for name, own in several.items()
        ),
        about=About(
            summary="another model scores the policy's own rollouts, token by token",
            source="tinker-cookbook's train_on_policy (commit 9dfcc3a); TRL, verl, ms-swift agree",
        ),
    )
