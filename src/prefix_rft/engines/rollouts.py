"""What of a method the record of a rollout needs."""

from __future__ import annotations

from prefix_rft.core import Method


def stream_of(method: Method, hybrid: bool, whole: bool, guided: bool = False) -> int:
    """The first stream that acts on what was sampled of a row, or else on the demonstration."""
    sampled = "continuation" if hybrid else "guided" if guided else "policy"
    origin = "demonstration" if whole else sampled
    return next((s for s, o in enumerate(method.streams) if origin in o.tokens), 0)
