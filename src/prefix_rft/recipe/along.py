"""Keys of a recipe for evaluations along the way: what each of them needs to have an effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefix_rft.runs.best import BEST, CHOOSES
from prefix_rft.support.errors import UserError, choose

EVERY = "eval_every"
COUNTS = (EVERY, "eval_every_samples", "stop_after")
"""Keys that are counts."""
ACTS = ("keep", "stop_after")
"""Keys that act on what is measured."""
ALONG = (EVERY, "eval_every_samples", *ACTS, "best_metric")
"""All of them."""


def check_along(values: Mapping[str, Any]) -> None:
    """Look whether every key of the evaluations along the way has an effect.

    Args:
        values: the recipe's own keys, as far as it gives them.

    Raises:
        UserError: one has none, or there is no such value; the message says the fix.
    """
    given = [key for key in ALONG if values.get(key) is not None]
    if given and EVERY not in given:
        raise UserError(
            f"recipe key '{given[0]}' has no effect without {EVERY}, the number of steps from one "
            "evaluation to the next"
        )
    for key, what in (("eval_data", "rows to evaluate"), ("reward", "reward to grade them with")):
        if given and values.get(key) is None:
            raise UserError(f"recipe key '{EVERY}' has no {what}: give {key}")
    if "keep" in given:
        choose("value of recipe key 'keep'", values["keep"], (BEST,))
    if "best_metric" in given:
        choose("best_metric", values["best_metric"], CHOOSES)
        if not set(ACTS) & set(given):
            raise UserError("recipe key 'best_metric' has no effect without keep or stop_after")


def refuse_unreached(every: int | None, steps: int) -> None:
    """Refuse evaluations of which a run never reaches the first.

    Args:
        every: the optimizer steps from one evaluation to the next; None where there are none.
        steps: the optimizer steps of the run.

    Raises:
        UserError: the run ends before.
    """
    if every is not None and every > steps:
        raise UserError(
            f"recipe key '{EVERY}' is {every}, and the run has {steps} steps, so it would never be "
            "evaluated along the way: give a smaller one"
        )
