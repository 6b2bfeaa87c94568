"""What cannot be seen is spelled out, and what can be seen is left alone."""

import pytest

from prefix_rft.support.untrusted import visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\n\ttext é 🙂 漢", "plain\n\ttext é 🙂 漢"),
        ("\x1b[31m", "⟨ESC⟩[31m"),
        ("\0\r\x7f\x9b", "⟨NUL⟩⟨CR⟩⟨DEL⟩⟨U+009B⟩"),
        ("\u202eabc\u2069", "⟨U+202E⟩abc⟨U+2069⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\u200bb\ufeff\u2028", "a⟨U+200B⟩b⟨U+FEFF⟩⟨U+2028⟩"),
        ("\U000e0041\uffff", "⟨U+E0041⟩⟨U+FFFF⟩"),
        ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}\u200d\N{ROCKET}"),
    ],
)
def test_visible(text: str, seen: str) -> None:
    assert visible(text) == seen
    assert visible(text).encode("utf-8")


def test_every_character_can_be_shown() -> None:
    planes = [*range(0x30000), *range(0xE0000, 0xE1000), *range(0x10FFF0, 0x110000)]
    shown = visible("".join(map(chr, planes)))
    hidden = [c for c in shown if not c.isprintable() and c not in "\n\t\u200c\u200d"]
    assert {hex(ord(c)) for c in hidden if not c.isspace()} == set()
    assert shown.encode("utf-8")
