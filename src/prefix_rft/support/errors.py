"""Refusals that name what was wrong and the nearest right name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Input that cannot be used; the message says what, where, and the fix.

    The command prints it as one line and exits with code 2.
    """


class RunError(RuntimeError):
    """A run cannot go on; the message says what was seen, where, and what may help.

    The command prints it as one line and exits with code 1.
    """


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """A signal stopped a run, which has saved what it needs to go on.

    Attributes:
        signal: its number.
    """

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal


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


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise UserError for a number outside [low, high]."""
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise UserError(f"{name} must be {bounds}, got {value}")


KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "Mapping[str, str]": (Mapping,),
    "Mapping[str, Any]": (Mapping,),
    "Sequence[str]": (list, tuple),
    "Sequence[Any]": (list, tuple),
    "dict": (Mapping,),
    "list": (list, tuple),
}


def check_types(what: str, values: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raise UserError for a value that is not of the kind written in an annotation.

    Annotations with parts that are not in ``KINDS`` (``Any``, classes) are not checked. A truth
    value is no number here, although Python counts it as one.
    """
    for name, value in values.items():
        parts = [p.strip() for p in kinds.get(name, "Any").split("|")]
        if not all(p in KINDS for p in parts):
            continue
        allowed = tuple(t for p in parts for t in KINDS[p])
        if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed):
            wanted = " or ".join(WORDS.get(p, p) for p in parts if p != "None")
            raise UserError(f"{what} '{name}' must be {wanted}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{what} '{name}' must be a finite number, got {value!r}")


WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "Mapping[str, str]": "a mapping",
    "Mapping[str, Any]": "a mapping",
    "Sequence[str]": "a list",
    "Sequence[Any]": "a list",
    "dict": "a mapping",
    "list": "a list",
}


def one_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
