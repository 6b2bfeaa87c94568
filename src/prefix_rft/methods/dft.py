"""DFT, dynamic fine-tuning (arXiv 2508.05629, ICLR 2026)."""

from __future__ import annotations

from prefix_rft.core.method import Method, Stream
from prefix_rft.core.weights import probability


def dft() -> Method:
    """SFT whose tokens are weighted by their own detached probability.

    Not to be confused with discriminative fine-tuning, which calls itself DFT too.
    """
    return Method(
        name="dft",
        summary="SFT with each token weighted by its own probability, no rollouts",
        source="arXiv 2508.05629 and the authors' fsdp_dft_trainer",
        streams=(Stream("demonstration", ("demonstration",), "logp", 1.0, weight=probability()),),
        num_demonstrations=1,
    )
