"""Options of a method as the configurations of all engines take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from prefix_rft.core import Method
from prefix_rft.methods import load
from prefix_rft.methods.common import COMMON
from prefix_rft.methods.registry import find, own_options
from prefix_rft.methods.teaching import OPTIONS
from prefix_rft.support.errors import UserError

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


def resolve(
    name: str,
    options: Mapping[str, Any],
    shared: Mapping[str, Any],
    where: str,
    under: str,
    folder: Path | None = None,
) -> Method:
    """The method with its options, those given as keys of their own included.

    Args:
        name: a built-in method, or ``package.module:function``.
        options: the method's options.
        shared: values of some of ``SHARED``, exactly those that were given.
        where: they were given, for the message.
        under: what the options stand under, for the message.
        folder: a method in a module in it can be named too, as one beside a recipe.

    Raises:
        UserError: an unknown method or option, a shared key without effect in this method, or one
            that is given twice with two values.
    """
    option_names = {*own_options(find(name, folder)), *COMMON, *OPTIONS}
    for key, value in shared.items():
        if key not in option_names:
            raise UserError(f"{key}={value} has no effect: '{name}' has no {key}")
        if key in options and options[key] != value:
            raise UserError(
                f"{key} is {value} {where} and {options[key]} {under}: give it in one of the two"
            )
    return load(name, folder, **{**options, **shared})


class KeepsMethod:
    """Mixin for a trainer's arguments: their method, built once until what decides it changes."""

    _made: Method | None = None  # elsewhere, and not taken yet
    _kept: tuple[Any, Method] | None = None

    @classmethod
    def of(cls, resolved: Method, **settings: Any) -> Self:
        """The arguments of a method that was made already, so that there is one in a run.

        Args:
            resolved: what ``resolve`` made of the settings' method and its options.
            settings: the settings of the arguments.

        Raises:
            ValueError: the arguments refuse a setting themselves.
        """
        args = cls.__new__(cls)
        args._made = resolved
        type(args).__init__(args, **settings)
        return args

    def resolve_method(self) -> Method:
        """The method with the shared options of these arguments, and those agreed on both sides.

        Raises:
            ValueError: an unknown method or option, or one set to two values.
        """
        if self._kept is None or self._kept[0] != self._decides():
            method, self._made = self._made or self._load(), None
            fitted = self._fit(method)  # may settle arguments that were left open
            self._kept = (self._decides(), fitted)
        return self._kept[1]

    def _decides(self) -> Any:
        """The values of these arguments that decide the method."""
        raise NotImplementedError

    def _load(self) -> Method:
        """The method that these arguments name."""
        raise NotImplementedError

    def _fit(self, method: Method) -> Method:
        """The method, checked against the other arguments, with what it takes from them."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Without the method: a stranger's may not be picklable, and its name is."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_made", "_kept")}


def with_const(method: Method, max_completion_length: Any) -> Method:
    """The method with ``const`` of its sums at the completion budget, if it is open."""
    if method.normaliser.const is not None:
        return method
    const = float(max_completion_length)
    return replace(method, normaliser=replace(method.normaliser, const=const))


def check_rows(method: Method, name: str, generations: int) -> None:
    """Raise ValueError where a group is not of the size for the rows that the method plans.

    Args:
        method: the method with its options.
        name: the method's name as it was asked for.
        generations: rows of a group.
    """
    turns = method.planner.turns(generations)
    if len(turns) != generations or set(turns) != set(range(max(turns) + 1)):
        raise ValueError(
            f"the planner of method '{name}' gives the turns {turns} to groups of "
            f"num_generations={generations}: each row needs one, and they count from 0"
        )
    planned = method.rows.num_hybrid + method.rows.num_demonstrations
    if planned > generations or method.rows.num_demonstrations >= generations:
        raise ValueError(
            f"method '{name}' wants {method.rows.num_hybrid} hybrid and "
            f"{method.rows.num_demonstrations} demonstration rows in groups of "
            f"num_generations={generations}"
        )
    compared = any(s.advantage == "policy_group" for s in method.streams)
    if compared and method.rows.fixed and generations - planned < 2:
        raise ValueError(
            f"method '{name}' compares on-policy rows with one another, but a group of "
            f"num_generations={generations} has fewer than two"
        )
