"""The arms of a comparison: what differs from the recipe that they share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.collection import Collection, refuse_swept
from prefix_rft.compare.controls import with_controls
from prefix_rft.compare.prices import at_one_price, refuse_unlike_steps, refuse_unpriced
from prefix_rft.engines.arguments import of_rollouts
from prefix_rft.evaluation.run import TEMPERATURES
from prefix_rft.methods import load
from prefix_rft.recipe.recipe import COMPARE
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

METHODS = ("sft", "sft+dr_grpo", "dr_grpo", "prefix_rft", "sft+prefix_rft")
"""Compared by default: what an honest table about Prefix-RFT needs."""
SWEEP = (5.0, 10.0, 50.0)
"""Learning rates of imitation, as multiples of the recipe's: 5e-6, 1e-5 and 5e-5 for RL's usual
1e-6, the sweep of arXiv 2604.23747."""
SPECIAL = ("start", "match", "sweep", "collect")
"""Keys of an arm that are not a recipe's."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how it is measured.

    Attributes:
        arms: the arms in the order of tables.
        seeds: the numbers 0, 1, ... of training.
        reference: the arm that the others are compared with.
        validation_data: rows to choose swept values on; None takes ``eval_data``.
        samples: the number of samples of each held-out problem.
        temperatures: the temperatures of the samples; the first one decides sweeps.
        by: columns to split results by.
        forgetting: a suite of other tasks that every model is evaluated on.
        trajectory: models saved and evaluated along training, 0 for none.
        further: where the best value of a sweep lies at its edge, try one further.
        controls: whether arms with teachers are run with something else in the place of what these
            are shown, too: true for ``unrelated`` and ``none``, or a list of controls.
    """

    arms: Sequence[Arm]
    seeds: int
    reference: str
    validation_data: Any = None
    samples: int = 8
    temperatures: Sequence[float] = TEMPERATURES
    by: Sequence[str] = ()
    forgetting: str | None = None
    trajectory: int = 0
    further: bool = True
    controls: bool | Sequence[str] = False

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(a for a in self.arms if a.name == name)


def read_comparison(
    data: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    learning_rates: Sequence[float] | None = None,
    block: str = COMPARE,
    folder: Path = Path(),
) -> Comparison:
    """The comparison that a recipe's mapping describes.

    Args:
        data: the recipe, with its block where it has arms of its own.
        methods: names of arms, or of methods; ``A+B`` is B from the model that A has left.
        seeds: the number of seeds in place of the recipe's.
        learning_rates: the learning rates that imitation methods choose from.
        block: the recipe key of these settings.
        folder: the recipe's folder.

    Raises:
        UserError: anything that cannot be compared.
    """
    settings = data.get(block) or {}
    if not isinstance(settings, dict):
        raise UserError(f"recipe key '{block}' must be a mapping")
    kinds = {f.name: str(f.type) for f in fields(Comparison)}
    refuse_unknown(f"key of '{block}'", settings, kinds)
    arms = _own_arms(settings.get("arms") or {}, block)
    if methods is None and not arms:
        methods = METHODS
    if methods is not None:
        arms = _named_arms(methods, arms, data, learning_rates)
    arms = at_one_price(arms, data)
    arms = with_controls(arms, settings.get("controls", False), data, folder, block)
    names = [a.name for a in arms]
    reference = settings.get("reference", "prefix_rft" if "prefix_rft" in names else names[0])
    choose(f"arm as 'reference' of '{block}'", reference, names)
    rest = {k: v for k, v in settings.items() if k not in ("arms", "reference", "seeds")}
    number = settings.get("seeds", 3) if seeds is None else seeds
    comparison = Comparison(arms, number, reference, **rest)
    checked = _checked(comparison, kinds, block)
    refuse_unpriced(checked.arms, data)
    return checked


def _checked(comparison: Comparison, kinds: Mapping[str, str], block: str) -> Comparison:
    simple = ("seeds", "samples", "trajectory", "further")
    check_types(f"key of '{block}'", {k: getattr(comparison, k) for k in simple}, kinds)
    for name in ("seeds", "samples"):
        if getattr(comparison, name) < 1:
            raise UserError(f"a comparison needs at least one of '{name}'")
    temperatures = comparison.temperatures
    numbers = isinstance(temperatures, (list, tuple)) and all(
        isinstance(t, (int, float)) and 0 <= t < math.inf for t in temperatures
    )
    if not numbers or not temperatures:
        raise UserError(f"'temperatures' of '{block}' must be a list of numbers, at least 0")
    for arm in comparison.arms:
        for role in ("start", "match"):
            other = getattr(arm, role)
            if other is not None:
                choose(
                    f"arm as '{role}' of arm '{arm.name}'", other, [a.name for a in comparison.arms]
                )
        _follow(comparison, arm)
        if arm.match is not None:
            refuse_unlike_steps(arm, comparison.arm(arm.match))
    return replace(comparison, temperatures=tuple(float(t) for t in temperatures))


def _follow(comparison: Comparison, arm: Arm) -> None:
    """Raise UserError if an arm waits for itself."""
    waiting, todo = set(), [arm.start, arm.match]
    while todo:
        name = todo.pop()
        if name == arm.name:
            raise UserError(f"arm '{arm.name}' waits for itself by way of 'start' or 'match'")
        if name is not None and name not in waiting:
            waiting.add(name)
            todo += [comparison.arm(name).start, comparison.arm(name).match]


def _own_arms(mapping: Any, block: str) -> list[Arm]:
    if not isinstance(mapping, dict):
        raise UserError(f"'arms' of '{block}' must be a mapping of names to keys")
    arms = []
    for name, keys in mapping.items():
        if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)?", str(name)) or str(name).startswith("."):
            raise UserError(f"'{name}' cannot name an arm: give letters, digits, -, _ and one /")
        if not isinstance(keys or {}, dict):
            raise UserError(f"arm '{name}' must be a mapping of keys to values")
        keys = dict(keys or {})
        special = {k: keys.pop(k) for k in SPECIAL if k in keys}
        check_types(f"key of arm '{name}':", special, {f.name: str(f.type) for f in fields(Arm)})
        sweep = special.get("sweep") or {}
        if (
            not isinstance(sweep, dict)
            or len(sweep) > 1
            or not all(isinstance(v, list) and v for v in sweep.values())
        ):
            raise UserError(f"'sweep' of arm '{name}' must be one key and a list of values")
        collect = Collection.read(special.pop("collect", None), str(name))
        if collect is not None:
            refuse_swept(str(name), sweep)
        arms.append(Arm(str(name), keys, **special, collect=collect))
    return arms


def _named_arms(
    names: Sequence[str],
    own_arms: Sequence[Arm],
    recipe: Mapping[str, Any],
    learning_rates: Sequence[float] | None,
) -> list[Arm]:
    by_name = {a.name: a for a in own_arms}
    chosen: dict[str, Arm] = {}

    def add(name: str) -> None:
        if name in chosen:
            return
        arm = by_name.get(name) or _method_arm(name, names, recipe, learning_rates)
        for other in (arm.start, arm.match):
            if other is not None and other not in names:
                add(other)
        chosen[name] = arm

    for name in names:
        add(name)
    return list(chosen.values())


def _method_arm(
    name: str,
    names: Sequence[str],
    recipe: Mapping[str, Any],
    learning_rates: Sequence[float] | None,
) -> Arm:
    """The arm of a built-in method by its name, or of two of them, one after the other."""
    start, plus, method = name.rpartition("+")
    keys: dict[str, Any] = {"method": method}
    sweep: dict[str, Sequence[Any]] = {}
    if not load(method).samples:
        keys |= {f"~{key}": None for key in of_rollouts(recipe)}
        rate = float(recipe.get("learning_rate", 1e-6))
        rates = learning_rates or [float(f"{rate * factor:.6g}") for factor in SWEEP]
        sweep = {"learning_rate": list(rates)}
    match = method if plus and method in names else None
    return Arm(name, keys, start or None, match, sweep)
