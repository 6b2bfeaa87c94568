"""Options that every method has in which they have an effect, and where in a method they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import Clip, Groups, Normaliser
from prefix_rft.core.stream import fallback

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


def common_types() -> dict[str, str]:
    """The annotation of each common option."""
    types = {part: {f.name: str(f.type) for f in fields(kind)} for part, kind in PARTS.items()}
    return {name: types[part][field] for name, (part, field) in COMMON.items()}


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
