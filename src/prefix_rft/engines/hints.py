"""A part of a demonstration, as token ids, written into a prompt: for engines and checks alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefix_rft.core.hint import Hint, with_hint
from prefix_rft.data.render import Renderer


def hinted(prompt: Any, ids: Sequence[int], hint: Hint, renderer: Renderer) -> Any:
    """A prompt with a hint.

    Args:
        prompt: a text or messages; it stays as it is.
        ids: the part of the demonstration.
        hint: how it is written.
        renderer: how ids become texts.
    """
    return with_hint(prompt, renderer.completions([ids])[0], hint)


def longest_prompt(
    prompt: Any, demonstrations: Sequence[Sequence[int]], hint: Hint | None, renderer: Renderer
) -> list[int]:
    """Token ids of a prompt with the longest hint that a row may have.

    Args:
        prompt: a text or messages.
        demonstrations: ids of those that are used; may be empty.
        hint: how a hint is written; None where the method has none.
        renderer: how texts become ids, and back.
    """
    if hint is not None and demonstrations:
        prompt = hinted(prompt, max(demonstrations, key=len), hint, renderer)
    return renderer.prompt(prompt)
