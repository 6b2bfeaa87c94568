"""Refusals that name what was wrong and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used; the message says what, where, and the fix.

    The command prints it as one line and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name, or the list of all when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}."


def choose(what: str, value: object, known: Iterable[str]) -> None:
    """Raise UserError unless ``value`` is one of ``known``."""
    known = tuple(known)
    if value not in known:
        raise UserError(f"unknown {what} {value!r}: {nearest(str(value), known)}")


def refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError for the first of ``names`` that is not among ``known``."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} '{name}': {nearest(str(name), known)}")
