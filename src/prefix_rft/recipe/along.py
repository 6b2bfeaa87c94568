"""Keys of a recipe for evaluations along the way: what each of them needs to have an effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefix_rft.support.errors import UserError

EVERY = "eval_every"
ALONG = (EVERY, "eval_every_samples")
"""Keys that are counts."""


def check_along(values: Mapping[str, Any]) -> None:
    """Look whether every key of the evaluations along the way has an effect.

    Args:
        values: the recipe's own keys, as far as it gives them.

    Raises:
        UserError: one has none; the message says what is missing.
    """
    if values.get(EVERY) is None:
        for key in ALONG:
            if values.get(key) is not None:
                raise UserError(
                    f"recipe key '{key}' has no effect without {EVERY}, the number of steps from "
                    "one evaluation to the next"
                )
        return
    for key, what in (("eval_data", "rows to evaluate"), ("reward", "reward to grade them with")):
        if values.get(key) is None:
            raise UserError(f"recipe key '{EVERY}' has no {what}: give {key}")


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
