"""DFT, dynamic fine-tuning (arXiv 2508.05629, ICLR 2026)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream
from prefix_rft.core.weights import probability


def dft() -> Method:
    """SFT whose tokens are weighted by their own detached probability.

    Not to be confused with discriminative fine-tuning, which calls itself DFT too.
    """
    return Method(
        name="dft",
        streams=(Stream("demonstration", ("demonstration",), "logp", 1.0, weight=probability()),),
        rows=RandomPrefix(num_demonstrations=1),
        about=About(
            summary="SFT with each token weighted by its own probability, no rollouts",
            source="arXiv 2508.05629 and the authors' fsdp_dft_trainer",
        ),
    )
