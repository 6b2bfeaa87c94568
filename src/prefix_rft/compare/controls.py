"""Arms that are others' controls: the same, but for what their teachers are shown.

Of a gain that a demonstration seems to bring, a part may come without it: the demonstration of
another problem works about as well in arXiv 2608.09228, and none at all does much in 2609.20612.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefix_rft.compare.arm import Arm, ControlOf, overrides_of
from prefix_rft.core.method import Method
from prefix_rft.core.teacher import CONTROLS, Teacher
from prefix_rft.methods import load
from prefix_rft.recipe.mapping import apply_overrides
from prefix_rft.recipe.stages import DEFAULT_METHOD
from prefix_rft.support.errors import UserError, check_types, choose

KEY = "method.control"
BY_THEMSELVES = ("unrelated", "none")
"""What ``controls: true`` adds."""
DECIDING = ("method", "method.name", KEY)
"""Keys whose sweep would put something else in the place of a control."""
WITHOUT = {
    "demonstration": "the demonstration",
    "prefix": "the demonstration's beginning",
    "peer": "the solved row",
    "wrong": "the unsolved row",
    "unrelated": "the unrelated example",
}


def with_controls(
    arms: Sequence[Arm], wanted: Any, data: Mapping[str, Any], folder: Path, block: str
) -> list[Arm]:
    """The arms, behind each one whose method has teachers those that are its controls.

    Args:
        arms: the arms as they are given.
        wanted: ``controls`` of a comparison: whether there are some, or a list of them.
        data: the recipe that the arms share.
        folder: the recipe's folder, beside which a method may be.
        block: the recipe key of the comparison, for messages.

    Raises:
        UserError: no such control, an arm whose method is not known, or none of them can have one.
    """
    kinds = _kinds(wanted, block)
    if not kinds:
        return list(arms)
    found: list[Arm] = []
    for arm in arms:
        method = method_of(arm, data, folder)
        if not method.teachers or any(t.control for t in method.teachers):
            found.append(arm)
            continue
        why = {kind: why_not(kind, method.teachers) for kind in kinds}
        found.append(replace(arm, lacks={kind: words for kind, words in why.items() if words}))
        found += [_control(arm, k, method.teachers) for k, words in why.items() if not words]
    if len(found) == len(arms):
        words = "; ".join(map(lacking, filter(lambda arm: arm.lacks, found)))
        raise UserError(
            f"'controls' of '{block}' adds nothing: {words or 'no arm has a method with a teacher'}"
        )
    return found


def _kinds(wanted: Any, block: str) -> Sequence[str]:
    """The controls that are asked for."""
    check_types(f"key of '{block}'", {"controls": wanted}, {"controls": "bool | Sequence[str]"})
    kinds = (BY_THEMSELVES if wanted else ()) if isinstance(wanted, bool) else tuple(wanted)
    for kind in kinds:
        choose(f"control in 'controls' of '{block}'", kind, CONTROLS)
    return kinds


def method_of(arm: Arm, data: Mapping[str, Any], folder: Path) -> Method:
    """The method that an arm trains with.

    Args:
        arm: the arm.
        data: the recipe that the arms share.
        folder: the recipe's folder.

    Raises:
        UserError: it cannot be used, or the arm sweeps it.
    """
    for key in arm.sweep:
        if key in DECIDING:
            raise UserError(
                f"arm '{arm.name}' sweeps '{key}', so that it has no one method that a control "
                "could be made of: make an arm of each value, or leave out 'controls'"
            )
    own = deepcopy(dict(data))
    apply_overrides(own, overrides_of(arm.keys))
    given = own.get("method", DEFAULT_METHOD)
    options = dict(given) if isinstance(given, Mapping) else {"name": given}
    try:
        return load(str(options.pop("name", DEFAULT_METHOD)), folder, **options)
    except UserError as error:
        raise UserError(f"arm '{arm.name}': {error}") from error


def why_not(kind: str, teachers: Sequence[Teacher]) -> str:
    """Why a method cannot have a control; empty where it can.

    Args:
        kind: the control.
        teachers: the method's teachers, at least one.
    """
    contexts = {t.context for t in teachers}
    if contexts == {"none"}:
        # Another example in its prompt would only distract it: it was shown none before.
        return "its teacher sees no more than the policy does"
    if kind != "none" and "none" in contexts:
        return "one of its teachers sees no more than the policy does"
    return "its teacher is shown that already" if contexts == {kind} else ""


def lacking(arm: Arm) -> str:
    """A sentence about the controls that an arm cannot have; empty where there are none."""
    by_why: dict[str, list[str]] = {}
    for kind, why in arm.lacks.items():
        by_why.setdefault(why, []).append(kind)
    words = [f"{' or '.join(kinds)}, since {why}" for why, kinds in by_why.items()]
    return f"arm '{arm.name}' has no control {'; '.join(words)}" if words else ""


def _control(arm: Arm, kind: str, teachers: Sequence[Teacher]) -> Arm:
    """The arm with something else in the place of its teachers' context."""
    shown = [t for t in teachers if t.context != "none"]
    words = [WITHOUT.get(t.context, f"column '{t.column}'") for t in shown]
    keys = {k: v for k, v in arm.keys.items() if k != KEY} | {KEY: kind}
    control = ControlOf(arm.name, kind, " and ".join(dict.fromkeys(words)))
    return replace(arm, name=f"{arm.name}, control: {kind}", keys=keys, control=control)
