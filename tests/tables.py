"""Large tables of cases: some of each kind in the default suite, the others among slow tests."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Parameters of a test, of which those are slow that are not ``quick``.

    A case is a value, or a tuple of values that are given to ``quick`` one by one.
    """
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if quick(*values) else (pytest.mark.slow,)
        found.append(pytest.param(*values, marks=marks))
    return found
