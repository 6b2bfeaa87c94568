"""Find a method by name or import path and check its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from prefix_rft.core.method import Method, fallback
from prefix_rft.errors import UserError, check_types, choose, refuse_unknown

BUILT_IN = (
    # demonstrations and rewards in one loss
    "prefix_rft", "luffy", "uft", "srft", "relift", "hpt", "superrl", "chord", "rl_sft", "mifo",
    # a demonstration's prefix as context
    "bread", "adaback", "pope", "r3", "questa",
    # rewards alone
    "grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo", "self_sft",
    # demonstrations alone
    "sft", "dft", "iw_sft", "fdiv_sft", "discriminative", "irft",
)  # fmt: skip
GROUP_OPTIONS = ("all_wrong", "all_right", "attempts", "solved_above")
"""Options that every method which samples has, see ``Method``; each has its own defaults."""


def find(name: str) -> Callable[..., Any]:
    """The function behind a built-in name, or behind ``package.module:function``.

    Raises:
        ValueError: no such method; the message names the nearest one.
    """
    if name in BUILT_IN:
        return getattr(importlib.import_module(f"prefix_rft.methods.{name}"), name)
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not module:
        choose("method", name, BUILT_IN)
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"method '{name}' cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"method '{name}' is not a function that returns a Method")
    return found


def options_of(name: str) -> dict[str, Any]:
    """The options of a method and their defaults."""
    parameters = inspect.signature(find(name)).parameters
    return {k: None if p.default is p.empty else p.default for k, p in parameters.items()}


def load(name: str, **overrides: Any) -> Method:
    """The method ``name`` with some of its options overridden.

    Args:
        name: a built-in name (``prefix_rft``, ``grpo``, ...) or ``package.module:function``.
        overrides: options of that method, and ``GROUP_OPTIONS`` if it samples.

    Raises:
        ValueError: unknown method, option or value; the message names the nearest one.
    """
    function = find(name)
    options = options_of(name)
    refuse_unknown(f"option of method {name}", overrides, [*options, *GROUP_OPTIONS])
    signature = inspect.signature(function).parameters
    kinds = {k: p.annotation for k, p in signature.items() if isinstance(p.annotation, str)}
    group = {k: v for k, v in overrides.items() if k in GROUP_OPTIONS and k not in options}
    types = {f.name: str(f.type) for f in fields(Method) if f.name in GROUP_OPTIONS}
    check_types(f"option of method {name}", overrides, {**types, **kinds})
    method = function(**{k: v for k, v in overrides.items() if k not in group})
    if not isinstance(method, Method):
        raise UserError(f"method '{name}' returned {type(method).__name__}, not a Method")
    if group and not method.samples:
        raise UserError(
            f"method '{name}' samples no groups, so '{next(iter(group))}' has no effect"
        )
    streams = method.streams
    if group.get("all_wrong") == "demonstration" and not method.trains("demonstration"):
        streams = (*streams, fallback())
    return replace(method, **group, streams=streams, options={**options, **overrides})
