"""MIFO (arXiv 2510.04454)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Groups, Interleave
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers
from prefix_rft.core.weights import top_entropy


def mifo(
    *,
    unsolved_at: float = 0.25,
    sft_prompts: int | None = None,
    entropy_keep: float = 0.2,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """GRPO, interleaved with SFT on the uncertain tokens of prompts with low accuracy.

    The paper also freezes, during SFT, the parameters that RL has changed most: give
    ``parameter_mask: {kind: mifo}`` with it.

    Args:
        unsolved_at: solve rate at or below which a prompt's demonstration is set aside.
        sft_prompts: demonstrations of one SFT step; None is the rows of a generation.
        entropy_keep: share of a demonstration's tokens that are trained, the most uncertain.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="mifo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            Stream(
                "demonstration",
                ("demonstration",),
                "logp",
                1.0,
                weight=top_entropy(entropy_keep),
                aggregation="token_mean",
            ),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        groups=Groups(interleave=Interleave(unsolved_at, sft_prompts)),
        about=About(
            summary="GRPO, interleaved with SFT on uncertain tokens of prompts with low accuracy",
            source="arXiv 2510.04454",
            unverified="no code was found; the thresholds are ours",
        ),
    )
