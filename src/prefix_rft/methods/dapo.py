"""DAPO (arXiv 2503.14476)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Clip, Groups, Overlong
from prefix_rft.core.stream import ROLLOUT, SAMPLED, Stream, regularisers


def dapo(
    *,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    overlong_buffer: float = 0.2,
    overlong_penalty: float = 1.0,
) -> Method:
    """GRPO with a higher upper clip, a token mean, no flat groups, and a price on long rows.

    Section 3: the four changes. A flat group (all right or all wrong) gives way to another prompt;
    after ``attempts`` tries it is dropped from the step and from its normaliser.

    Args:
        beta: KL coefficient; the paper has none.
        entropy_coef: entropy bonus; the paper has none.
        overlong_buffer: share of ``max_completion_length`` over which the reward falls (3.4: 4,096
            of 20,480 tokens); 0 is none.
        overlong_penalty: what a row at the limit loses.
    """
    return Method(
        name="dapo",
        streams=(
            Stream("policy", SAMPLED, "clip", "group", ROLLOUT),
            *regularisers(beta, entropy_coef, ROLLOUT),
        ),
        baseline="mean_std",
        clip=Clip(high=0.28),
        groups=Groups(
            all_wrong="resample",
            all_right="resample",
            overlong=Overlong(overlong_buffer, overlong_penalty),
        ),
        about=About(
            summary="GRPO with clip-higher, a token mean, no flat groups, a price on long rows",
            source="arXiv 2503.14476, section 3",
        ),
    )
