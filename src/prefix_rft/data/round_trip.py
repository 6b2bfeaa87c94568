"""What a tokenizer makes of a text: characters that it does not know, and texts that it changes."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from prefix_rft.data.render import Renderer

AROUND = 12
"""Characters that are shown on both sides of a difference."""


def unknown_part(render: Renderer, text: str, ids: list[int]) -> str | None:
    """The first part of a text that became the unknown token; None if there is none.

    Args:
        render: the renderer with the tokenizer.
        text: the text that was tokenised.
        ids: what it became.
    """
    tokenizer: Any = render.tokenizer
    unknown, name = tokenizer.unk_token_id, tokenizer.unk_token
    if unknown is None or unknown in render.unread:  # some call their EOS by that name too
        return None
    if ids.count(unknown) <= text.count(name):
        return None
    if not tokenizer.is_fast:
        return text[:AROUND]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    parts = (text[start:end] for i, (start, end) in pairs if i == unknown)
    return next((part for part in parts if part != name), text[:AROUND])


def change(render: Renderer, text: str, ids: list[int]) -> str | None:
    """How a demonstration reads once it has been tokens, where that differs: ``'A b' -> 'a b'``."""
    meant = text
    for name in render.tokenizer.convert_ids_to_tokens(sorted(render.unread)):
        meant = meant.replace(name, "")
    read = render.completions([ids])[0]
    if read == meant:
        return None
    pairs = zip_longest(meant, read)
    same = next(i for i, (before, after) in enumerate(pairs) if before != after)
    part = slice(max(0, same - AROUND), same + AROUND)
    return f"{meant[part]!r} -> {read[part]!r}"
