"""Untrusted text made harmless to look at: what models and datasets write may hold anything."""

from __future__ import annotations

import math
import unicodedata

from markupsafe import escape

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"

KEPT = {"\n", "\t", "\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}
"""Shown as they are: lines and tabs, and the two joiners without which scripts and emoji break."""

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that cannot be seen or that steer what is shown."""

C0 = """
NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI
DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US
"""
NAMES = {**dict(enumerate(C0.split())), 0x7F: "DEL"}
"""What ASCII calls its control characters."""

COST = 3
"""A character may take so many bytes of the page on average before a text is cut shorter."""


class _Pictures(dict[int, str]):
    """Each code point's visible form, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = character not in KEPT and unicodedata.category(character) in HIDDEN
        self[code] = _picture(code) if hidden else character
        return self[code]


def _picture(code: int) -> str:
    # Names, since many fonts lack the pictures that Unicode has for control characters.
    return f"⟨{NAMES[code]}⟩" if code in NAMES else f"⟨U+{code:04X}⟩"


PICTURES = _Pictures()


def visible(text: str) -> str:
    """``text`` with every control, bidi control, surrogate and other unseen character spelled out.

    Escape becomes ``⟨ESC⟩``, a right-to-left override ``⟨U+202E⟩``. The result is valid UTF-8.
    """
    return text.translate(PICTURES)


def cost(text: str) -> int:
    """Bytes that ``text`` takes in the page, visible and escaped."""
    return len(escape(visible(text)).encode())


def cut(text: str, limit: int, characters: int | None = None) -> tuple[str, int]:
    """The start of ``text`` and how many characters are left out.

    Args:
        text: as it was read.
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
