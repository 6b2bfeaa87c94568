"""Which part of a sample's text is prefix, which of it was trained, which was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tokenizers import Tokenizer

from prefix_rft.report.samples import Sample
from prefix_rft.report.text import cut
from prefix_rft.runs.rollouts import DEMONSTRATION
from prefix_rft.runs.token_texts import split

Segment = tuple[str, str]
"""A state (``prefix``, ``kept``, or empty for what was sampled) and a text."""


def segments(sample: Sample, tokenizer: Tokenizer | None, limit: int) -> list[Segment] | None:
    """The sample's text in parts of one state each; None where tokens cannot be told apart."""
    if tokenizer is None:
        return None
    found = split(tokenizer, sample.ids, sample.tokens, sample.text.start, limit)
    if found is None:
        return None
    states = [state_of(sample, place) for place in range(len(found))]
    parts = groupby(zip(states, found, strict=True), key=lambda pair: pair[0])
    return [(state, text) for state, part in parts if (text := "".join(t for _, t in part))]


def state_of(sample: Sample, place: int) -> str:
    """Of the token at a place of the completion."""
    if place >= sample.prefix_length or sample.kind == DEMONSTRATION:
        return ""
    return "kept" if sample.kept is not None and place in sample.kept else "prefix"


def cut_segments(
    parts: Sequence[Segment], limit: int, characters: int
) -> tuple[list[Segment], int]:
    """The first parts up to a limit, and how many characters of the whole are left out."""
    shown, _ = cut("".join(text for _, text in parts), limit)
    left = len(shown)
    result: list[Segment] = []
    for state, text in parts:
        if left <= 0:
            break
        result.append((state, text[:left]))
        left -= len(result[-1][1])
    return result, characters - len(shown)
