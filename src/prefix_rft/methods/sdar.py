"""SDAR, self-distillation behind a gate (arXiv 2605.15155)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.teacher import ANSWER, Teacher
from prefix_rft.core.weights import gate


def sdar(
    *,
    coef: float = 0.1,
    gate_beta: float = 5.0,
    column: str = "answer",
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO, and ``sigmoid(gate_beta D) log pi`` on every sampled token.

    The gate is positive: the term raises every token and lowers none. With ``gate_beta`` 0 its
    expected gradient is 0, and only noise is added.

    Args:
        coef: the coefficient of the term (paper: 0.01 to 0.1).
        gate_beta: how sharp the gate is (paper: 5).
        column: the column that the teacher knows (paper: a skill that was looked up).
        beta: KL coefficient (authors' code: 0.001).
        entropy_coef: entropy bonus.
    """
    return Method(
        name="sdar",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            Stream(
                "gate", SAMPLED, "logp", 1.0, ROLLOUT, constant(coef), gate(gate_beta),
                aggregation="token_mean", teacher="teacher", taught=True,
            ),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        teachers=(
            Teacher(context="column", weights="live", template=ANSWER, column=column),
        ),
        about=About(
            summary="GRPO, and more of every token that the policy with more context likes",
            source="arXiv 2605.15155 and the authors' sdar_utils.py (commit 8b85c23)",
        ),
    )  # fmt: skip
