"""The one way in which commands print a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefix_rft.support.untrusted import visible

if TYPE_CHECKING:
    from rich.console import Console

ROWS_NAMED = 5
"""Rows that a sentence names; of further ones it says how many there are."""


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it stands: nothing in it is markup, and nothing steers the terminal.

    Args:
        console: the console on which it is printed; a long line is left to the terminal to wrap.
        text: a text of one or more lines, with whatever models, data or file names brought into it.
        style: rich's, of the whole text.
    """
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)


def named(rows: Sequence[object], count: int | None = None) -> str:
    """``3, 8, 9 and 14 more``.

    Args:
        rows: the first rows, by what they are called.
        count: how many rows there are in all; by default as many as are given.
    """
    count = len(rows) if count is None else count
    shown = ", ".join(map(str, rows[:ROWS_NAMED]))
    return shown + (f" and {count - ROWS_NAMED} more" if count > ROWS_NAMED else "")
