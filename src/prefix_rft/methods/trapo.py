"""TRAPO, trust-region adaptive policy optimization (arXiv 2512.17636, ICLR 2026)."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.micro_groups import MicroGroups
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import EVERYONE, SAMPLED, Stream, regularisers
from prefix_rft.core.weights import truncated


def trapo(
    *,
    at: float = 0.1,
    sizes: Any = (4, 2, 1, 1),
    shares: Any = (0.0, 0.25, 0.5, 1.0),
    below: Any = (0, 2, 4, 7),
    forward: float = 0.3,
    beta: float = 0.0,
    entropy_coef: float = 0.001,
) -> Method:
    """Rows of a group get more of a demonstration while those before them fail; it is imitated.

    What is given of a demonstration is trained with ``min(p / at, 1) log pi``, whatever the row's
    reward (TrSFT); what is sampled with ``A pi/pi_old``, no clip, ``A = R - mean`` of all rows.

    Args:
        at: the probability below which a token of a demonstration weighs less.
        sizes: rows of each micro-group, in the order in which they are sampled.
        shares: shares of a demonstration from which the rows of each start; 1 is a row of its own.
        below: they do where the rewards of all rows before them sum to less.
        forward: a prefix ends at the next blank line within this share of the demonstration.
        beta: KL coefficient (authors' script: none).
        entropy_coef: entropy bonus (authors' script: 0.001).
    """
    return Method(
        name="trapo",
        streams=(
            Stream("policy", SAMPLED, "ratio", "group", EVERYONE),
            Stream(
                "imitation",
                ("prefix", "demonstration"),
                "logp",
                1.0,
                EVERYONE,
                weight=truncated(at),
            ),
            *regularisers(beta, entropy_coef, EVERYONE),
        ),
        rows=MicroGroups.of(sizes, shares, below, forward),
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="rows get more of a demonstration, imitated with TrSFT, while others fail",
            source="arXiv 2512.17636 and the authors' compute_token_on_off_policy_loss",
            unverified="the paper was not read, and its numbers are second-hand",
        ),
    )
