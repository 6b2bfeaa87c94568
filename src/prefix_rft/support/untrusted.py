"""Untrusted text made harmless to look at: what models and datasets write may hold anything.

The one place for it: terminal, log, error line and page show the same text in the same way.
"""

from __future__ import annotations

import io
import unicodedata
from typing import Any

SHOWN = {"\n", "\t", "\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}
"""Shown as they are: lines and tabs, and the two joiners without which scripts and emoji break."""

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that cannot be seen or that steer what is shown."""

C0 = """
NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI
DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US
"""
NAMES = {**dict(enumerate(C0.split())), 0x7F: "DEL"}
"""What ASCII calls its control characters."""


class _Pictures(dict[int, str]):
    """Each code point's visible form, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = character not in SHOWN and unicodedata.category(character) in HIDDEN
        self[code] = _picture(code) if hidden else character
        return self[code]


def _picture(code: int) -> str:
    # Names, since many fonts lack the pictures that Unicode has for control characters.
    return f"⟨{NAMES[code]}⟩" if code in NAMES else f"⟨U+{code:04X}⟩"


PICTURES = _Pictures()


def show_what_it_can(stream: Any) -> None:
    """Let a terminal that knows few characters show ``?`` for the others, instead of an error."""
    encoding = str(getattr(stream, "encoding", None) or "utf-8").lower()
    if isinstance(stream, io.TextIOWrapper) and not encoding.startswith("utf"):
        stream.reconfigure(errors="replace")


def visible(text: str) -> str:
    """``text`` with every control, bidi control, surrogate and other unseen character spelled out.

    Escape becomes ``⟨ESC⟩``, a right-to-left override ``⟨U+202E⟩``. The result is valid UTF-8.
    """
    return text.translate(PICTURES)
