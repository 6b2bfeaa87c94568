"""The space that SentencePiece's kin write in front of a text, where no text begins.

Such a tokenizer reads ``4`` as ``▁4``: it takes every text for the start of one. A demonstration
goes on from its prompt, so its tokens are those that it has there: behind the prompt's own text,
of which the tokens stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Ids of texts, without the special tokens that a tokenizer puts around them."""

ANCHORS = ("\n", "=", "0", "a")
"""Texts to stand in front of another; one of them will not grow together with it."""


def writes_space(encode: Encode) -> bool:
    """Whether a text's ids differ where another text stands in front of it."""
    alone = encode(["0"])[0]
    for anchor in ANCHORS:
        start, whole = encode([anchor, anchor + "0"])
        if _goes_on(start, whole):
            return whole[len(start) :] != alone
    return False


def ids_behind(encode: Encode, contexts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text behind the first of the contexts with which it does not grow together.

    A text that grows together with all of them has the ids that it has alone.
    """
    ids_of: dict[int, list[int]] = {}
    for context in contexts:
        left = [i for i in range(len(texts)) if i not in ids_of]
        if not left:
            break
        start, *wholes = encode([context, *(context + texts[i] for i in left)])
        for i, whole in zip(left, wholes, strict=True):
            if _goes_on(start, whole):
                ids_of[i] = whole[len(start) :]
    left = [i for i in range(len(texts)) if i not in ids_of]
    ids_of |= dict(zip(left, encode([texts[i] for i in left]) if left else [], strict=True))
    return [ids_of[i] for i in range(len(texts))]


def _goes_on(start: list[int], whole: list[int]) -> bool:
    return len(whole) > len(start) and whole[: len(start)] == start
