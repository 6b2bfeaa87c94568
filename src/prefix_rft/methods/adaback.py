"""AdaBack, adaptive backtracking (arXiv 2506.18110, ICLR 2026)."""

from __future__ import annotations

from prefix_rft.core.control import Control
from prefix_rft.core.laws import Bisection
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import SAMPLED, Stream, regularisers


def adaback(
    *,
    threshold: float = 0.5,
    ema: float = 0.99,
    plain: float = 0.1,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO from a prefix, as context, whose length adapts to each example.

    Args:
        threshold: mean reward of a group below which more is revealed next time.
        ema: the decay of the average interval from which new examples start.
        plain: probability of a group without prefix.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="adaback",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(Bisection(threshold, ema), plain=plain),
        baseline="mean_std",
        normaliser=Normaliser("seq_mean_token_mean"),
        about=About(
            summary="GRPO from a prefix (context) whose length each example finds for itself",
            source="arXiv 2506.18110 and the authors' PerSampleCurriculumDatasetWrapper",
            unverified="plain groups and reopening are ours; the paper's values are not known",
        ),
    )
