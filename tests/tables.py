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


def each_once(first: Any, second: Any) -> Callable[[Any, Any], bool]:
    """Of a product, every value of either side beside one value of the other side."""
    return lambda one, other: one == first or other == second
