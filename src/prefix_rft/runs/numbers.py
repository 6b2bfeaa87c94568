"""Numbers as a run's files hold them, checked when they are read."""

from __future__ import annotations

import math
from typing import Any

DAMAGE = (KeyError, TypeError, AttributeError, OverflowError, UnicodeDecodeError)
"""What reading raises where a file holds something else than its writer has written."""


def finite(value: Any) -> float | None:
    """A number, or None for null and for a number that is not finite.

    Raises:
        TypeError: something else.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError("not a number")
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> int:
    """A count, a place in a list or a token id.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise TypeError("not a count, a place or an id")
    return value


def counts(value: Any) -> list[int]:
    """A list of counts, of places or of token ids.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, list):
        raise TypeError("not a list")
    # A run holds hundreds of millions of ids: no step of Python's own for each.
    if value and not (set(map(type, value)) == {int} and min(value) >= 0 and max(value) < 2**32):
        raise TypeError("a value in it is not a count, a place or an id")
    return value


def damage(error: Exception) -> str:
    """What is wrong with a file, in words, from one of ``DAMAGE``."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
