"""Texts and numbers as the page has them: cut by what they cost in it, and formatted."""

from __future__ import annotations

import math

from markupsafe import escape

from prefix_rft.support.untrusted import visible

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"

COST = 3
"""A character may take so many bytes of the page on average before a text is cut shorter."""


def cost(text: str) -> int:
    """Bytes that ``text`` takes in the page, visible and escaped."""
    return len(escape(visible(text)).encode())


def cut(text: str, limit: int, characters: int | None = None) -> tuple[str, int]:
    """The start of ``text`` and how many characters are left out.

    Args:
        text: the text as it was read.
        limit: characters to keep at most; fewer where they take over ``COST`` bytes each.
        characters: length of the whole, where ``text`` is only its start.
    """
    shown = text[:limit]
    while cost(shown) > COST * limit:
        shown = shown[: len(shown) * 3 // 4]
    return shown, (len(text) if characters is None else characters) - len(shown)


def more(count: int) -> str:
    """``… 998,000 characters more``; empty for none."""
    if count <= 0:
        return ""
    return f"… {count:,} character{'s' if count != 1 else ''} more"


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count, thousands set apart, a real minus sign; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.{digits}g}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", MINUS)


def signed(value: float | None) -> str:
    """A number with its sign and two decimals, for advantages."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:+.2f}".replace("-", MINUS) if round(value, 2) else "0.00"
