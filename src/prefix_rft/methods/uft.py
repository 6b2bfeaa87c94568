"""UFT (arXiv 2505.16984)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from prefix_rft.core.control import Control, Law
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import Group, Start
from prefix_rft.core.schedules import Schedule, constant, cosine
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import check_range


@dataclass(frozen=True)
class Annealed(Law):
    """All rows of a group share a hint of ``Binomial(chunks, share)`` chunks of a demonstration.

    ``share`` falls along a cosine and the hints end at ``until`` of the run.
    """

    chunks: int
    high: float
    low: float
    until: float

    def start(self, group: Group, index: int, rng: random.Random) -> Start | None:
        """Behind the hint."""
        end = round(self.until * group.total_steps)
        if group.step >= end:
            return None
        share = cosine(self.high, self.low, max(1, end))(group.step)
        chunks = sum(rng.random() < share for _ in range(self.chunks))
        return group.start(index, chunks / self.chunks)


def uft(
    *,
    hint_coef: float = 0.001,
    chunks: int = 5,
    hint_high: float = 0.95,
    hint_low: float = 0.05,
    hint_until: float = 0.6,
    beta: float = 0.001,
    entropy_coef: float = 0.001,
) -> Method:
    """GRPO from a shrinking hint, plus a little maximum likelihood of the hint.

    The constants are those of the authors' code: share 0.95 to 0.05 over 300 of 500 steps.

    Args:
        hint_coef: coefficient of the hint's negative log-likelihood, a mean over hint tokens.
        chunks: equal parts of a demonstration; a hint is a number of them.
        hint_high: expected share of the hint at the start.
        hint_low: and at the end of the schedule.
        hint_until: share of the run after which there are no hints.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    hint: Schedule = constant(hint_coef)
    check_range("chunks", chunks, 1)
    for name, value in (
        ("hint_high", hint_high),
        ("hint_low", hint_low),
        ("hint_until", hint_until),
    ):
        check_range(name, value, 0.0, 1.0)
    return Method(
        name="uft",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            Stream("hint", ("prefix",), "logp", 1.0, coefficient=hint, aggregation="token_mean"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(Annealed(chunks, hint_high, hint_low, hint_until)),
        baseline="mean_std",
        about=About(
            summary="GRPO from a shared hint that shrinks, with a little SFT on the hint",
            source="arXiv 2505.16984 and the authors' dp_actor and rl_dataset",
            unverified="the paper's result figures",
        ),
    )
