"""iw-SFT, importance-weighted SFT (arXiv 2507.12856)."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream
from prefix_rft.core.weights import sequence_importance
from prefix_rft.support.errors import check_range


def iw_sft(
    *,
    temperature: float = 1.0,
    cap: float = 16.0,
) -> Method:
    """SFT whose rows are weighted by how much likelier they are than under the initial model.

    Args:
        temperature: factor in the exponent (the authors' call: 1.0).
        cap: largest weight.
    """
    weight = sequence_importance(temperature, cap)
    check_range("cap", cap, 0.0)
    return Method(
        name="iw_sft",
        streams=(Stream("demonstration", ("demonstration",), "logp", 1.0, weight=weight),),
        rows=RandomPrefix(num_demonstrations=1),
        about=About(
            summary="SFT with each row weighted by its likelihood ratio to the initial model",
            source="arXiv 2507.12856 and the authors' IwSFTLoss",
            unverified="the paper's headline figures",
        ),
    )
