"""Discriminative fine-tuning, DFT and DFT2 of arXiv 2502.18679."""

from __future__ import annotations

from prefix_rft.core.contrast import Discriminative
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser, Reference
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream


def discriminative(
    *,
    averaged: bool = False,
    tau: float | None = None,
    gamma: float | None = None,
    negatives: str = "reference",
) -> Method:
    """Raise a demonstration's likelihood against that of sampled answers to the same prompt.

    One row of a group is the demonstration, the others are the negatives. Rewards do not enter the
    loss; one is asked for all the same, as what to watch.

    Args:
        averaged: DFT2: mean log-probabilities, no reference model in the loss.
        tau: temperature of the partition estimate; by default 1.0, with ``averaged`` 0.3.
        gamma: weight of the new estimate in the moving average; 0.85, with ``averaged`` 0.9.
        negatives: sampled from the ``reference`` (the initial model, as in the paper) or from the
            current ``policy``.
    """
    tau = tau if tau is not None else 0.3 if averaged else 1.0
    gamma = gamma if gamma is not None else 0.9 if averaged else 0.85
    demonstration = ("demonstration",)
    return Method(
        name="discriminative",
        streams=(
            Stream("demonstration", demonstration, "logp", "sequence"),
            Stream("negatives", ("policy",), "logp", "sequence", demonstration),
        ),
        rows=RandomPrefix(num_demonstrations=1),
        normaliser=Normaliser("seq_mean_token_mean" if averaged else "sum_over_const", const=1.0),
        contrast=Discriminative(tau, gamma, averaged),
        reference=Reference(sampler=negatives),
        about=About(
            summary="a demonstration's likelihood against that of sampled negatives, no reward",
            source="arXiv 2502.18679 and the authors' dft_trainer",
            unverified="a variant: the paper's negatives answer another system prompt, at T 0.7",
        ),
    )
