"""What a step of an arm costs, where its number is to be matched with the operations of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.methods import BUILT_IN, load
from prefix_rft.recipe.recipe import DEFAULT_ENGINE
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


def refuse_unpriced(arms: Sequence[Arm], recipe: Mapping[str, Any]) -> None:
    """Look whether the operations of collecting can be set beside those of training.

    Args:
        arms: the arms.
        recipe: the recipe that they share.

    Raises:
        UserError: the engine of an arm that collects counts no operations, or steps of imitation
            are to cost what they cost on other demonstrations.
    """
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        engine = arm.keys.get("engine", recipe.get("engine", DEFAULT_ENGINE))
        if arm.collect is not None and engine != DEFAULT_ENGINE:
            raise UserError(
                f"arm '{arm.name}' collects own answers, but of runs of engine '{engine}' no "
                f"operations are counted, so collecting would be all that it costs: give engine: "
                f"{DEFAULT_ENGINE}, or write the rows with prefix-rft collect"
            )
        if arm.match is None or not _imitates(arm.keys.get("method", recipe.get("method"))):
            continue
        if arm.collect is not None or by_name[arm.match].collect is not None:
            raise UserError(
                f"arm '{arm.name}' cannot match the operations of '{arm.match}' by its number of "
                "steps: a step of imitation costs what its demonstrations are long, and own "
                "answers have lengths of their own (collect); give max_steps"
            )


def steps_within(arm: Arm, budget: float, step: float) -> int:
    """How many steps of an arm the operations pay for that are left of those to match.

    Args:
        arm: the arm that matches.
        budget: what the matched arm has cost in all, less what this one has cost before training.
        step: what a step of the matched arm has cost.

    Raises:
        UserError: not one.
    """
    steps = int(budget / step)
    if steps < 1:
        before = "its start costs" if arm.collect is None else "what it collects costs"
        raise UserError(
            f"arm '{arm.name}' has no step left within the compute of '{arm.match}': {before} as "
            "much"
        )
    return steps


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
    if recipe.get("engine", DEFAULT_ENGINE) != DEFAULT_ENGINE:
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
