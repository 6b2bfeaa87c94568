"""SRFT (arXiv 2506.19767 v1)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import EVERYONE, Stream, regularisers
from prefix_rft.core.weights import exp_entropy, saturating
from prefix_rft.support.errors import choose


def srft(
    *,
    num_demonstrations: int = 1,
    sft_weight: float = 0.5,
    positive_weight: float = 0.1,
    entropy_level: str = "row",
    gamma: float | None = None,
    entropy_coef: float = 0.0,
) -> Method:
    """Four terms in one loss (Eq. 13), weighted by entropy.

    SFT on the demonstration with ``0.5 exp(-H)``; off-policy RL on it, ``A pi`` with the advantage
    ``(R - mean)/std`` over rollouts and demonstration (Eq. 7); ``log pi`` of solved rollouts with
    ``0.1 exp(H)``; ``-log pi`` of the others.

    Args:
        num_demonstrations: rows of the group that are whole demonstrations.
        sft_weight: 0.5 of the SFT weight.
        positive_weight: 0.1 of the weight of solved rollouts.
        entropy_level: H of the ``row`` (its mean; a re-implementation) or of the ``token``; the
            paper does not say.
        gamma: shapes ``A pi`` as LUFFY does (a re-implementation: 0.1); None is the paper.
        entropy_coef: entropy bonus.
    """
    choose("entropy_level", entropy_level, ("row", "token"))
    per_token = entropy_level == "token"
    demonstration, policy = ("demonstration",), ("policy",)
    shape = None if gamma is None else saturating(gamma)
    down, up = (
        exp_entropy(sft_weight, -1.0, per_token),
        exp_entropy(positive_weight, 1.0, per_token),
    )
    return Method(
        name="srft",
        streams=(
            Stream("sft", demonstration, "logp", 1.0, EVERYONE, weight=down),
            Stream("demonstration", demonstration, "likelihood", "group", EVERYONE, shape=shape),
            Stream("positive", policy, "logp", "solved", EVERYONE, weight=up),
            Stream("negative", policy, "logp", "unsolved", EVERYONE),
            *regularisers(0.0, entropy_coef, EVERYONE),
        ),
        rows=RandomPrefix(num_demonstrations=num_demonstrations),
        baseline="mean_std",
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary=(
                "one stage: entropy-weighted SFT and off-policy RL on demonstrations, own rollouts"
            ),
            source="arXiv 2506.19767 v1, Eq. 5 to 13",
            unverified="the authors' code; whether H is of a token, a row or a batch",
        ),
    )
