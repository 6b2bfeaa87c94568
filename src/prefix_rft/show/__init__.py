"""``prefix-rft show``: page through the groups of a run in the terminal, worst first."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from prefix_rft.rewards.verdict import STATUSES
from prefix_rft.runs.reader import RunFolder
from prefix_rft.show.groups import Filters, Place, find, read_range
from prefix_rft.show.view import View, count
from prefix_rft.support.errors import UserError, choose
from prefix_rft.support.untrusted import visible

PLAIN_GROUPS = 20
MARKS = "┃ ends the prefix, « » hold its tokens that keep their advantage, where known"
UNMARKED = "prefixes are not marked: the run has no tokenizer yet (it is saved with its model)"
KEYS = "Enter: next, b: back, a number: that group, q: quit, ?: these keys; each with Enter"

NEXT, BACK = ("", "n"), ("b", "p")


def run_show(
    console: Console,
    run: str,
    step: str | None = None,
    verdict: str | None = None,
    prefix: str | None = None,
    best: bool = False,
    limit: int | None = None,
    full: bool = False,
) -> None:
    """Show groups of rollouts: one by one in a terminal, as plain text elsewhere.

    Args:
        console: the console to print on.
        run: the run folder.
        step: ``N``, ``A-B`` or ``A-``: generations of these steps only.
        verdict: groups with a row of this verdict only, and those rows first.
        prefix: groups with a prefix of so many tokens only, as ``step``; ``0``: with none.
        best: the best groups first.
        limit: number of groups; by default all of them in a terminal, and 20 elsewhere.
        full: whole texts, however long.

    Raises:
        UserError: a run without rollouts, a filter that cannot be read or that takes nothing.
    """
    if verdict is not None:
        choose("verdict", verdict, STATUSES)
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}")
    filters = Filters(read_range("--step", step), verdict, read_range("--prefix", prefix))
    folder = RunFolder(Path(run))
    for stream in (console.file, sys.stdin):  # not every terminal knows every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    paged = console.is_terminal and sys.stdin.isatty()
    with console.status("reading the rollouts") if console.is_terminal else nullcontext():
        places = find(folder, filters, best)
    shown = places[: limit if limit is not None or paged else PLAIN_GROUPS]
    view = View(folder, console, verdict, full)

    order = "best first" if best else "worst first"
    rest = "" if len(shown) == len(places) else f", {len(shown)} of them shown (--limit)"
    view.say(Text(visible(f"{folder.name}: {count(len(places), 'group')}, {order}{rest}")))
    view.say(legend(view))
    if paged:
        page(view, shown)
        return
    for number, place in enumerate(shown, 1):
        view.show(place, f"{number} of {len(shown)}")


def legend(view: View) -> Text:
    """What the marks in the texts mean."""
    return Text(MARKS if view.tokenizer is not None else UNMARKED)


def page(view: View, places: Sequence[Place]) -> None:
    """One group after another, as the keys say, until ``q`` or the end of the input."""
    at, drawn, last = 0, -1, len(places) - 1
    view.say(Text(KEYS))
    while True:
        if at != drawn:
            view.show(places[at], f"{at + 1} of {len(places)}")
            drawn = at
            view.console.print()
        try:
            key = view.console.input(Text(f"{at + 1}/{len(places)} (Enter, b, q, ?) ", "dim"))
        except EOFError:
            view.console.print()  # the shell's own prompt begins a line
            return
        key = key.strip().lower()
        if key in ("q", "quit", "exit"):
            return
        if key in NEXT and at < last:
            at += 1
        elif key in NEXT:
            view.say(Text("this is the last group: q quits, b goes back"))
        elif key in BACK and at > 0:
            at -= 1
        elif key in BACK:
            view.say(Text("this is the first group"))
        elif re.fullmatch("[0-9]{1,9}", key) and 1 <= int(key) <= len(places):
            at = int(key) - 1
        elif key == "?":
            view.say(Text(KEYS))
            view.say(legend(view))
        else:
            view.say(Text(f"no such key, and no number from 1 to {len(places)}"))
            view.say(Text(KEYS))
