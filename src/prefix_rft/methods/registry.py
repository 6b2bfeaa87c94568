"""Find a method by name or import path and check its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.errors import UserError, check_types, choose, refuse_unknown

BUILT_IN = ("prefix_rft", "dr_grpo", "grpo", "sft")


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
        overrides: options of that method.

    Raises:
        ValueError: unknown method, option or value; the message names the nearest one.
    """
    function = find(name)
    options = options_of(name)
    refuse_unknown(f"option of method {name}", overrides, options)
    signature = inspect.signature(function).parameters
    kinds = {k: p.annotation for k, p in signature.items() if isinstance(p.annotation, str)}
    check_types(f"option of method {name}", overrides, kinds)
    method = function(**overrides)
    if not isinstance(method, Method):
        raise UserError(f"method '{name}' returned {type(method).__name__}, not a Method")
    return replace(method, options={**options, **overrides})
