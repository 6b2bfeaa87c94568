"""Prefix Sampling: rollout pass-rate control (arXiv 2605.05112)."""

from __future__ import annotations

from prefix_rft.core.control import Control
from prefix_rft.core.laws import Replay
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.store import Store
from prefix_rft.core.stream import SAMPLED, Stream, regularisers


def pass_rate(
    *,
    left: float = 0.25,
    given: float = 0.25,
    step: float = 0.05,
    hard_below: float = 0.3,
    easy_above: float = 0.7,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """REINFORCE with a group's mean, on prompts and on prefixes of the policy's own rollouts.

    A group that is mostly wrong leaves one of its right rollouts, a group that is mostly right one
    of its wrong ones; the example's next group starts from a part of it. No demonstration is used.

    Args:
        left: the share of a right rollout that is left to do, at first.
        given: the share of a wrong rollout that is given, at first.
        step: the amount by which either moves; 0 keeps them.
        hard_below: groups with a lower success rate leave a right rollout.
        easy_above: groups with a higher one leave a wrong rollout.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    return Method(
        name="pass_rate",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(
            Replay(left, given, step),
            store=Store(1, 1, success_below=hard_below, failure_above=easy_above),
        ),
        baseline="mean",
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="groups too hard or too easy come back from their own rollouts (context)",
            source="arXiv 2605.05112",
            unverified="no code was found; clip and normaliser are ours, and a group comes back at "
            "its example's next visit, not in the next step",
        ),
    )
