"""Find a method by name or import path and check its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import Clip, Groups, Normaliser
from prefix_rft.core.stream import fallback
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

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
COMMON = {
    "epsilon": ("clip", "low"),
    "epsilon_high": ("clip", "high"),
    "delta": ("clip", "delta"),
    "truncated": ("groups", "truncated"),
    "aggregation": ("normaliser", "aggregation"),
    "const": ("normaliser", "const"),
    "all_wrong": ("groups", "all_wrong"),
    "all_right": ("groups", "all_right"),
    "attempts": ("groups", "attempts"),
    "solved_above": ("groups", "solved_above"),
}
"""Options of every method in which they have an effect: part of ``Method``, and field of it."""
PARTS = {"clip": Clip, "groups": Groups, "normaliser": Normaliser}


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
    except Exception as error:  # a stranger's module may raise anything
        raise UserError(
            f"method '{name}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise UserError(f"method '{name}' is not a function that returns a Method")
    return found


def common_options(method: Method) -> dict[str, Any]:
    """The common options that have an effect in this method, and its values of them."""
    surrogates = {s.surrogate for s in method.streams}
    without_effect: set[str] = set()
    if not surrogates & {"clip", "cispo"}:
        without_effect |= {"epsilon", "epsilon_high"}
    if "clip" not in surrogates:
        without_effect |= {"delta"}
    if method.contrast is not None:  # the contrast is right under its own normaliser alone
        without_effect |= {"aggregation", "const", "truncated"}
    if not method.groups.sampled_again:
        without_effect |= {"attempts"}
    if not method.samples:
        without_effect |= {"truncated", "all_wrong", "all_right", "attempts", "solved_above"}
    return {
        name: getattr(getattr(method, part), field)
        for name, (part, field) in COMMON.items()
        if name not in without_effect
    }


def with_common(method: Method, options: Mapping[str, Any]) -> Method:
    """The method with some of the common options set."""
    changed: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        part, field = COMMON[name]
        changed.setdefault(part, {})[field] = value
    parts = {part: replace(getattr(method, part), **values) for part, values in changed.items()}
    if options.get("all_wrong") == "demonstration" and not method.trains("demonstration"):
        parts["streams"] = (*method.streams, fallback())
    return replace(method, **parts)


REQUIRED = inspect.Parameter.empty
"""In place of the default of an option that has none."""


def own_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options in a method's signature and their defaults."""
    return {k: p.default for k, p in inspect.signature(function).parameters.items()}


def options_of(name: str) -> dict[str, Any]:
    """The options of a method and their defaults, the common ones last."""
    own = own_options(find(name))
    if any(v is REQUIRED for v in own.values()):
        return own  # what it needs is not known
    common = common_options(find(name)())
    return {**own, **{k: v for k, v in common.items() if k not in own}}


def load(name: str, **overrides: Any) -> Method:
    """The method ``name`` with some of its options overridden.

    Args:
        name: a built-in name (``prefix_rft``, ``grpo``, ...) or ``package.module:function``.
        overrides: options of that method, its own and the common ones, see ``common_options``.

    Raises:
        ValueError: unknown method, option or value; the message names the nearest one.
    """
    function = find(name)
    own = own_options(function)
    what = f"option of method {name}"
    refuse_unknown(what, overrides, [*own, *COMMON])
    types = {part: {f.name: str(f.type) for f in fields(kind)} for part, kind in PARTS.items()}
    kinds = {name: types[part][field] for name, (part, field) in COMMON.items()}
    annotations = inspect.get_annotations(function)
    kinds |= {k: v for k, v in annotations.items() if k in own and isinstance(v, str)}
    check_types(what, overrides, kinds)
    try:
        method = function(**{k: v for k, v in overrides.items() if k in own})
    except UserError:
        raise
    except Exception as error:  # a stranger's function may raise anything
        raise UserError(f"method '{name}' failed: {type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise UserError(f"method '{name}' returned {type(method).__name__}, not a Method")
    changed = with_common(method, {k: v for k, v in overrides.items() if k not in own})
    known = common_options(changed)
    for option in overrides:
        if option not in own and option not in known:
            raise UserError(f"option '{option}' has no effect in method '{name}'")
    known = {k: v for k, v in known.items() if k not in own}
    options = {**own, **known, **overrides}
    return replace(changed, about=replace(changed.about, options=options))
