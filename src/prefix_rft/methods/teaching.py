"""Options of every method that has teachers: whose they are, what they see, which divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.method import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.support.errors import UserError, check_types, refuse_unknown

TEACHER, CONTROL, DIVERGENCE = "teacher", "control", "divergence"
OPTIONS = {
    TEACHER: "Mapping[str, Any] | None",
    CONTROL: "str | None",
    DIVERGENCE: "Mapping[str, Any] | None",
}
"""The options, and their types."""
FIXED = ("name", "control")
"""Fields of a teacher that are no option of it."""


def teaching_options(method: Method) -> dict[str, Any]:
    """The options, with their defaults; none for a method without teachers."""
    names = OPTIONS if method.divergences else (TEACHER, CONTROL)
    return dict.fromkeys(names) if method.teachers else {}


def with_teachers(method: Method, options: Mapping[str, Any]) -> Method:
    """The method with other teachers, another divergence, or something else in the contexts' place.

    Args:
        method: the method.
        options: ``teacher``, fields of its teachers in place of the method's own, ``divergence``,
            those of its divergences, and ``control``.

    Raises:
        UserError: a field that there is not, or a value that it cannot have.
    """
    own, control = options.get(TEACHER) or {}, options.get(CONTROL)
    check_fields(TEACHER, own, Teacher, FIXED)
    if (own or control) and not method.teachers:
        raise UserError(f"method '{method.name}' has no teacher: leave out teacher and control")
    teachers = tuple(replace(t, **own, control=control or t.control) for t in method.teachers)
    spec = options.get(DIVERGENCE) or {}
    check_fields(DIVERGENCE, spec, Divergence, ())
    if spec and not method.divergences:
        raise UserError(f"method '{method.name}' has no divergence: leave out {DIVERGENCE}")
    streams = tuple(
        s if s.divergence is None else replace(s, divergence=changed(s.divergence, spec))
        for s in method.streams
    )
    return replace(method, teachers=teachers, streams=streams)


def changed(own: Divergence, spec: Mapping[str, Any]) -> Divergence:
    """A divergence with other fields; over the whole vocabulary it has no top of its own."""
    if spec.get("support") == "vocabulary":
        own = replace(own, support="vocabulary", top=Divergence.top, tail=Divergence.tail)
    return replace(own, **spec)


def check_fields(what: str, given: Mapping[str, Any], kind: Any, fixed: Sequence[str]) -> None:
    """Look whether the fields of an option are those that it has.

    Args:
        what: the option.
        given: its fields.
        kind: the dataclass that they are of.
        fixed: fields of it that are no option.

    Raises:
        UserError: one is unknown, or has another type.
    """
    kinds = {f.name: str(f.type) for f in fields(kind) if f.name not in fixed}
    refuse_unknown(f"option of {what}", given, kinds)
    check_types(f"option of {what}", given, kinds)
