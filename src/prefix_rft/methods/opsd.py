"""OPSD, on-policy self-distillation from a solution (arXiv 2601.18734, ICML 2026)."""

from __future__ import annotations

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.stream import SAMPLED, Stream
from prefix_rft.core.teacher import SOLUTION, Teacher


def opsd() -> Method:
    """The divergence of the policy's own rollouts from the start model that sees a solution.

    No reward is read. Forward KL, as the later release has it; the first one has
    ``divergence: {alpha: 0.5}``. Its cap on every entry of the sum, ``divergence: {cap: 0.05,
    cap_level: entry}``, is off: it can lower a token that the teacher wants higher.
    """
    return Method(
        name="opsd",
        streams=(
            Stream(
                "teacher", SAMPLED, "divergence", 1.0, counts="trained", teacher="teacher",
                divergence=Divergence(0.0),
            ),
        ),
        teachers=(Teacher(context="demonstration", weights="frozen", template=SOLUTION),),
        about=About(
            summary="the policy follows the model that it started from, which sees a solution",
            source="arXiv 2601.18734 and the authors' code (590ec26)",
            unverified="the later release, but for forks and issues; its template",
        ),
    )  # fmt: skip
