"""IRFT, implicit reward learning fine-tuning (arXiv 2405.17888, NeurIPS 2024)."""

from __future__ import annotations

from prefix_rft.core.contrast import SelfPlay
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser, Reference
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream


def irft(*, beta_contrast: float = 0.1, stages: int = 5) -> Method:
    """Prefer demonstrations to samples of the policy as it was when the stage began.

    At each of ``stages`` equal parts of the run the reference becomes the policy; negatives are
    sampled from it. One stage is SPIN. Rewards do not enter the loss; one is asked for all the
    same, as what to watch.

    Args:
        beta_contrast: scale of the margin (authors' code: 0.1).
        stages: how many times the reference is set.
    """
    demonstration = ("demonstration",)
    return Method(
        name="irft",
        streams=(
            Stream("demonstration", demonstration, "logp", "sequence"),
            Stream("negatives", ("policy",), "logp", "sequence", demonstration),
        ),
        rows=RandomPrefix(num_demonstrations=1),
        normaliser=Normaliser("sum_over_const", const=1.0),
        contrast=SelfPlay(beta_contrast),
        reference=Reference(sampler="reference", stages=stages),
        about=About(
            summary=(
                "demonstrations preferred to samples of a policy frozen at each stage, no reward"
            ),
            source="arXiv 2405.17888 and the authors' spin_loss",
            unverified="the paper's result figures",
        ),
    )
