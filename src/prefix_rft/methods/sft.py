"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.stream import Stream


def sft() -> Method:
    """Maximum likelihood of the demonstration tokens, EOS included, prompts excluded.

    The mean is over all target tokens of the optimizer step and of all processes; a mean of
    micro-batch means is the error that lowered this family's published SFT baselines
    (arXiv 2604.23747, section 3).
    """
    return Method(
        name="sft",
        streams=(Stream("demonstration", ("demonstration",), "logp", 1.0),),
        rows=RandomPrefix(num_demonstrations=1),
        about=About(
            summary="maximum likelihood of whole demonstrations, no rollouts",
            source="the usual cross-entropy; normaliser as corrected in arXiv 2604.23747",
        ),
    )
