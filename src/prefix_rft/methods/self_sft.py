"""SFT on the policy's own verified rollouts (arXiv 2506.23508, rejection sampling)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Reference
from prefix_rft.core.stream import Stream


def self_sft(*, rollouts: str = "policy") -> Method:
    """Maximum likelihood of the rollouts that were solved; the others are thrown away.

    Args:
        rollouts: who samples them: the current ``policy`` (each step), or the ``reference``, the
            model that the run starts from, as if they had been sampled beforehand.
    """
    return Method(
        name="self_sft",
        streams=(Stream("policy", ("policy",), "logp", "solved", counts="trained"),),
        reference=Reference(sampler=rollouts),
        about=About(
            summary="SFT on the policy's own rollouts, those that are verified as right",
            source="arXiv 2506.23508",
            unverified=(
                "a variant: the paper imitates an RL-trained model's rollouts; no code found"
            ),
        ),
    )
