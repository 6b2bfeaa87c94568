"""What a step of an arm costs, where its number is to be matched with the operations of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.methods import BUILT_IN, load
from prefix_rft.support.errors import UserError

STEP = ("prompts_per_step", "num_generations", "max_completion_length", "peft")
"""Keys on which the operations of a step depend."""
UNTRAINED = "untrained"
AT_ONE_PRICE = ("packing", "sampler_scores")
"""The savings of which a step's operations do not depend on how the rollouts went."""


def refuse_unlike_steps(arm: Arm, other: Arm) -> None:
    """Raise UserError where an arm's steps do not cost what those cost that it is to match.

    Steps are counted out beforehand, at the price of the other arm's.
    """
    ours, theirs = _step(arm), _step(other)
    unlike = [key for key in (*STEP, "method") if ours.get(key) != theirs.get(key)]
    if not unlike and arm.keys.get("savings") != other.keys.get("savings"):
        unlike = ["savings"]
    if unlike:
        raise UserError(
            f"arm '{arm.name}' cannot match the operations of '{other.name}' by its number of "
            f"steps: a step of it costs something else ({', '.join(unlike)}); give max_steps"
        )


def at_one_price(arms: Sequence[Arm], recipe: Mapping[str, Any]) -> list[Arm]:
    """The arms; those that match another one, or are matched, leave out no row without gradient.

    How many rows have a gradient depends on what an arm has learnt, so its steps would cost now
    this and now that.

    Args:
        arms: the arms as they are given.
        recipe: the recipe that they share.

    Raises:
        UserError: ``savings`` asks for what such an arm cannot have.
    """
    if recipe.get("engine", "trl") != "trl":
        return list(arms)  # which leaves out no row
    matched = {a.match for a in arms} | {a.name for a in arms if a.match is not None}
    priced = []
    for arm in arms:
        if arm.name not in matched or _imitates(arm.keys.get("method", recipe.get("method"))):
            priced.append(arm)
            continue
        given = arm.keys.get("savings", recipe.get("savings"))
        if given == "all" or UNTRAINED in (given or ()):
            raise UserError(
                f"arm '{arm.name}' is matched by its number of steps, but with '{UNTRAINED}' among "
                f"its savings no step costs what another does: give {list(AT_ONE_PRICE)}"
            )
        keys = {"savings": list(AT_ONE_PRICE)} if given is None else {}
        priced.append(replace(arm, keys={**keys, **arm.keys}))
    return priced


def _imitates(method: Any) -> bool:
    name = method.get("name") if isinstance(method, Mapping) else method
    return name in BUILT_IN and not load(str(name)).samples


def _step(arm: Arm) -> dict[str, Any]:
    """What an arm says of the keys on which a step's operations depend."""
    parts: dict[str, Any] = {"method": _imitates(arm.keys.get("method"))}
    for key, value in arm.keys.items():
        name = key.removeprefix("~").partition(".")[0]
        if name in STEP:
            parts.setdefault(name, {})[key] = value
    return parts
