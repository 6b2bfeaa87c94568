"""Find a method by name or import path and check its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.methods.common import COMMON, common_options, common_types, with_common
from prefix_rft.methods.teaching import OPTIONS, teaching_options, with_teachers
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown
from prefix_rft.support.imports import load_function

BUILT_IN = (
    # demonstrations and rewards in one loss
    "prefix_rft", "luffy", "uft", "srft", "relift", "hpt", "superrl", "chord", "rl_sft", "mifo",
    "trapo",
    # a demonstration's prefix as context
    "bread", "adaback", "pope", "r3", "questa", "control", "adaprefix", "prefixrl", "pass_rate",
    # rewards alone
    "grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo", "self_sft",
    # a teacher beside the rewards, or in their place
    "opd", "rlsd", "gats", "sdar", "sdft", "opsd", "sdpo", "gkd", "hdpo",
    # demonstrations alone
    "sft", "dft", "iw_sft", "fdiv_sft", "discriminative", "irft",
)  # fmt: skip


def find(name: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function behind a built-in name, or behind an import path.

    Args:
        name: a built-in name, ``package.module:function``, or the same with a dot for the colon.
        folder: modules in it can be named too, as those beside a recipe.

    Raises:
        ValueError: no such method; the message names the nearest one.
    """
    if name in BUILT_IN:
        return load_function(f"prefix_rft.methods.{name}:{name}", what="method")
    if ":" in name:
        return load_function(name, folder, "method")
    module, _, function = name.rpartition(".")
    if not module:
        choose("method", name, BUILT_IN)
    return load_function(f"{module}:{function}", folder, "method")


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
    method = find(name)()
    common = common_options(method) | teaching_options(method)
    return {**own, **{k: v for k, v in common.items() if k not in own}}


def load(name: str, folder: Path | None = None, /, **overrides: Any) -> Method:
    """The method ``name`` with some of its options overridden.

    Args:
        name: a built-in name (``prefix_rft``, ``grpo``, ...) or ``package.module:function``.
        folder: modules in it can be named too, as those beside a recipe.
        overrides: options of that method, its own and the common ones, see ``common_options``.

    Raises:
        ValueError: unknown method, option or value; the message names the nearest one.
    """
    function = find(name, folder)
    own = own_options(function)
    what = f"option of method {name}"
    refuse_unknown(what, overrides, [*own, *COMMON, *OPTIONS])
    kinds = common_types() | OPTIONS
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
    rest = {k: v for k, v in overrides.items() if k not in own}
    changed = with_common(method, {k: v for k, v in rest.items() if k in COMMON})
    changed = with_teachers(changed, {k: v for k, v in rest.items() if k in OPTIONS})
    common = common_options(changed) | teaching_options(changed)
    for option in overrides:
        if option not in own and option not in common:
            raise UserError(f"option '{option}' has no effect in method '{name}'")
    common = {k: v for k, v in common.items() if k not in own}
    options = {**own, **common, **overrides}
    return replace(changed, about=replace(changed.about, options=options))
