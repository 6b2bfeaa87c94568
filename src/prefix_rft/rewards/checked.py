"""A reward function that answers with the wrong length or a NaN stops the run with a sentence."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from prefix_rft.errors import UserError


class RewardError(UserError):
    """A reward function broke its contract."""


def verify_rewards(name: str, rewards: Any, expected: int) -> list[float | None]:
    """The rewards as a list of finite floats, or None for a completion that cannot be graded.

    Raises:
        RewardError: not a sequence, wrong length, or a value that is not a finite number or None.
    """
    try:
        values = list(rewards)
    except TypeError:
        kind = type(rewards).__name__
        raise RewardError(
            f"reward function '{name}' returned a {kind}; it must return a list with one number "
            "(or None) per completion"
        ) from None
    if len(values) != expected:
        raise RewardError(
            f"reward function '{name}' returned {len(values)} rewards for {expected} completions; "
            "it must return exactly one per completion"
        )
    checked_values: list[float | None] = []
    for i, value in enumerate(values):
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            raise RewardError(
                f"reward function '{name}', completion {i}: {value!r} is not a number"
            ) from None
        if number is not None and not math.isfinite(number):
            raise RewardError(
                f"reward function '{name}', completion {i}: the reward is {number}; "
                "return None for a completion that cannot be graded"
            )
        checked_values.append(number)
    return checked_values


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; an object may have an asynchronous ``__call__``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def name_of(function: Callable[..., Any]) -> str:
    """A name for messages and metrics."""
    inner = getattr(function, "func", function)  # functools.partial
    return getattr(inner, "__name__", type(inner).__name__)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` (TRL signature, sync or async) with its answer verified at every call."""
    name = name_of(function)
    if is_async(function):

        @functools.wraps(function)
        async def call_async(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
            answer = await function(*args, completions=completions, **kwargs)
            return verify_rewards(name, answer, len(completions))

        call_async.__name__ = name
        return call_async

    @functools.wraps(function)
    def call(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
        answer = function(*args, completions=completions, **kwargs)
        return verify_rewards(name, answer, len(completions))

    call.__name__ = name
    return call
