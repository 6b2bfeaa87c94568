"""SDFT, self-distillation from the policy that sees a demonstration (arXiv 2601.19897)."""

from __future__ import annotations

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.stream import SAMPLED, Stream
from prefix_rft.core.teacher import DEMONSTRATION, Teacher
from prefix_rft.core.weights import staleness


def sdft(*, skip: int = 3, ratio_cap: float = 2.0) -> Method:
    """The divergence of the policy's own rollouts from a slow copy of it that sees a demonstration.

    No reward is read. The paper's eq. 1 is the reverse KL; the authors' code, and by their word all
    of their results, are the forward one: ``divergence: {alpha: 1}`` is the paper's.

    Args:
        skip: the first tokens of each response neither act nor count (authors' code: 3).
        ratio_cap: the most that ``pi / pi_old`` weighs a token (authors: 2, of the sampler's ratio
            and as a mean over the row).
    """
    return Method(
        name="sdft",
        streams=(
            Stream(
                "teacher", SAMPLED, "divergence", 1.0, weight=staleness(ratio_cap),
                counts="trained", teacher="teacher", divergence=Divergence(0.0), skip=skip,
            ),
        ),
        normaliser=Normaliser("seq_mean_token_mean"),
        teachers=(
            Teacher(context="demonstration", weights="ema", template=DEMONSTRATION, rate=0.01),
        ),
        about=About(
            summary="the policy follows a slow copy of itself that sees a demonstration",
            source="arXiv 2601.19897 and the authors' code (a fork of its first upload, 83e10df)",
            unverified="the authors' repository at first hand",
        ),
    )  # fmt: skip
