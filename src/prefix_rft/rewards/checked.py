"""A reward function that answers with the wrong length or a NaN stops the run with a sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from prefix_rft.rewards.verdict import NO_ANSWER_IS, Verdict, settled, values_of, verdict_of
from prefix_rft.support.errors import UserError, choose


class RewardError(UserError):
    """A reward function broke its contract."""


def verify_rewards(
    name: str, rewards: Any, expected: int, no_answer: str = "wrong"
) -> list[Verdict]:
    """The verdicts behind what a reward function returned.

    Args:
        name: the function's name, in messages.
        rewards: what it returned.
        expected: number of completions.
        no_answer: see :func:`prefix_rft.rewards.verdict.settled`.

    Raises:
        RewardError: not a sequence, wrong length, or a value that is not a finite number, None or
            a verdict.
    """
    try:
        values = values_of(rewards, expected)
    except UserError as error:
        raise RewardError(f"reward function '{name}' {error}") from None
    verdicts = []
    for i, value in enumerate(values):
        try:
            verdicts.append(settled(verdict_of(value), no_answer))
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


def checked(function: Callable[..., Any], no_answer: str = "wrong") -> Callable[..., Any]:
    """``function`` (TRL signature, sync or async) with its answer verified at every call.

    What is returned has the verdicts of its last call as ``verdicts``.

    Args:
        function: it answers with numbers, None or verdicts. One that is checked stays as it is.
        no_answer: a verdict ``no answer`` counts as ``wrong`` (reward 0), or ``exclude`` it.

    Raises:
        UserError: another value of ``no_answer``.
    """
    choose("value of no_answer", no_answer, NO_ANSWER_IS)
    if getattr(function, "is_checked", False):
        return function
    name = name_of(function)
    kept: Any
    if is_async(function):

        @functools.wraps(function)
        async def call_async(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
            answer = await function(*args, completions=completions, **kwargs)
            kept.verdicts = verify_rewards(name, answer, len(completions), no_answer)
            return [v.reward for v in kept.verdicts]

        kept = call_async
        kept.__name__, kept.verdicts, kept.is_checked = name, [], True
        return kept

    @functools.wraps(function)
    def call(*args: Any, completions: list[Any], **kwargs: Any) -> Any:
        answer = function(*args, completions=completions, **kwargs)
        kept.verdicts = verify_rewards(name, answer, len(completions), no_answer)
        return [v.reward for v in kept.verdicts]

    kept = call
    kept.__name__, kept.verdicts, kept.is_checked = name, [], True
    return kept
