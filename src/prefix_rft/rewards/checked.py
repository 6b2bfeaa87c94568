"""A reward function that answers with the wrong length or a NaN stops the run with a sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from prefix_rft.errors import UserError
from prefix_rft.rewards.verdict import Verdict, verdict_of


class RewardError(UserError):
    """A reward function broke its contract."""


def verify_rewards(name: str, rewards: Any, expected: int) -> list[Verdict]:
    """The verdicts behind what a reward function returned.

    Raises:
        RewardError: not a sequence, wrong length, or a value that is not a finite number, None or
            a verdict.
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
    verdicts = []
    for i, value in enumerate(values):
        try:
            verdicts.append(verdict_of(value))
        except UserError as error:
            raise RewardError(f"reward function '{name}', completion {i}: {error}") from None
    return verdicts


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
    """``function`` (TRL signature, sync or async) with its answer verified at every call.

    What is returned has the verdicts of its last call as ``verdicts``.
    """
    if getattr(function, "is_checked", False):
        return function
    name = name_of(function)
    kept: Any
    if is_async(function):

        @functools.wraps(function)
        async def call_async(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
            answer = await function(*args, completions=completions, **kwargs)
            kept.verdicts = verify_rewards(name, answer, len(completions))
            return [v.reward for v in kept.verdicts]

        kept = call_async
        kept.__name__, kept.verdicts, kept.is_checked = name, [], True
        return kept

    @functools.wraps(function)
    def call(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
        answer = function(*args, completions=completions, **kwargs)
        kept.verdicts = verify_rewards(name, answer, len(completions))
        return [v.reward for v in kept.verdicts]

    kept = call
    kept.__name__, kept.verdicts, kept.is_checked = name, [], True
    return kept
