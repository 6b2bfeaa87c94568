"""ReLIFT (arXiv 2506.07527)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Groups, Interleave, Normaliser
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def relift(
    *,
    unsolved_at: float = 0.0,
    sft_prompts: int | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.001,
) -> Method:
    """RL steps, and between them steps of SFT on the demonstrations of prompts that all failed.

    The demonstrations of prompts without any solved rollout are set aside, first in, first out;
    once ``sft_prompts`` of them wait, the next generation is made of them alone.

    Args:
        unsolved_at: solve rate at or below which a prompt's demonstration is set aside.
        sft_prompts: demonstrations of one SFT step (authors' code: 128, with 128 x 8 rollouts in an
            RL step); None is the rows of a generation.
        beta: KL coefficient.
        entropy_coef: entropy bonus (authors' code: 0.001).
    """
    return Method(
        name="relift",
        streams=(
            Stream("policy", SAMPLED, "ratio", "group", ROLLOUT),
            Stream("demonstration", ("demonstration",), "logp", 1.0, aggregation="token_mean"),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        normaliser=Normaliser("sum_over_const"),
        groups=Groups(interleave=Interleave(unsolved_at, sft_prompts)),
        about=About(
            summary=(
                "RL, interleaved with SFT steps on the demonstrations of prompts that all failed"
            ),
            source="arXiv 2506.07527 and the authors' trainer and actor",
        ),
    )
