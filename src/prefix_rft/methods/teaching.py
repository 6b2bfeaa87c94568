"""Options of every method that has teachers: whose they are, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.support.errors import UserError, check_types, refuse_unknown

TEACHER, CONTROL = "teacher", "control"
OPTIONS = {TEACHER: "Mapping[str, Any] | None", CONTROL: "str | None"}
"""The options, and their types."""
FIXED = ("name", "control")
"""Fields of a teacher that are no option of it."""


def teaching_options(method: Method) -> dict[str, Any]:
    """The options, with their defaults; none for a method without teachers."""
    return dict.fromkeys(OPTIONS) if method.teachers else {}


def with_teachers(method: Method, options: Mapping[str, Any]) -> Method:
    """The method with other teachers, or with something else in the place of their context.

    Args:
        method: the method.
        options: ``teacher``, fields of its teachers in place of the method's own, and ``control``.

    Raises:
        UserError: a field that a teacher does not have, or a value that it cannot have.
    """
    own, control = options.get(TEACHER) or {}, options.get(CONTROL)
    kinds = {f.name: str(f.type) for f in fields(Teacher) if f.name not in FIXED}
    refuse_unknown(f"option of {TEACHER}", own, kinds)
    check_types(f"option of {TEACHER}", own, kinds)
    if (own or control) and not method.teachers:
        raise UserError(f"method '{method.name}' has no teacher: leave out teacher and control")
    teachers = tuple(replace(t, **own, control=control or t.control) for t in method.teachers)
    return replace(method, teachers=teachers)
