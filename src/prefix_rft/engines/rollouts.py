"""What of a method the record of a rollout needs."""

from __future__ import annotations

from prefix_rft.core import Method


def stream_of(method: Method, prefix_length: int, whole: bool) -> int:
    """The first stream that acts on what was sampled of a row, or else on the demonstration."""
    sampled = "continuation" if prefix_length else "policy"
    origin = "demonstration" if whole else sampled
    return next((s for s, o in enumerate(method.streams) if origin in o.tokens), 0)
