"""Options of a method as the configurations of all engines take them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from prefix_rft.core import Method

SHARED = ("epsilon", "epsilon_high", "delta", "beta", "entropy_coef")
"""Options of methods that are keys of their own too, with TRL's names."""


def parse_options(name: str, text: str) -> dict[str, Any]:
    """Options given as JSON, as on a command line.

    Raises:
        ValueError: something else.
    """
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"{name} must be a mapping (on a command line, JSON), got {text!r}")
    return options


def with_const(method: Method, max_completion_length: Any) -> Method:
    """The method with ``const`` of its sums at the completion budget, if it is open."""
    return replace(method, const=float(max_completion_length)) if method.const is None else method


def check_rows(method: Method, name: str, generations: int) -> None:
    """Raise ValueError where a group is too small for the rows that the method plans.

    Args:
        method: with its options.
        name: as it was asked for.
        generations: rows of a group.
    """
    planned = method.num_hybrid + method.num_demonstrations
    if planned > generations or method.num_demonstrations >= generations:
        raise ValueError(
            f"method '{name}' wants {method.num_hybrid} hybrid and "
            f"{method.num_demonstrations} demonstration rows in groups of "
            f"num_generations={generations}"
        )
    compared = any(s.advantage == "policy_group" for s in method.streams)
    if compared and method.planner is None and generations - planned < 2:
        raise ValueError(
            f"method '{name}' compares on-policy rows with one another, but a group of "
            f"num_generations={generations} has fewer than two"
        )
