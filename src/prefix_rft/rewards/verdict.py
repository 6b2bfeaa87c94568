"""What a grader says about one completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from prefix_rft.support.errors import UserError, choose
from prefix_rft.support.single_precision import LARGEST

Function = TypeVar("Function", bound=Callable[..., Any])

CORRECT = "correct"
WRONG = "wrong"
NO_ANSWER = "no answer"
GOLD_UNPARSEABLE = "gold unparseable"
TIMEOUT = "timeout"
ERROR = "error"
SKIPPED = "skipped"
"""TRL's None: this reward function does not apply to the row, and the others decide."""

STATUSES = (CORRECT, WRONG, NO_ANSWER, GOLD_UNPARSEABLE, TIMEOUT, ERROR, SKIPPED)
FULL_REWARD = 1.0 - 1e-6
NO_ANSWER_IS = ("wrong", "exclude")
"""What a completion without an answer may count as."""
NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)
"""What can be iterated and is no list of rewards."""
LONGEST_DETAIL = 300


@dataclass(frozen=True)
class Verdict:
    """A status, the reward that belongs to it, and a word on why.

    A reward function may return verdicts where TRL expects numbers. ``correct`` is worth 1.0 and
    ``wrong`` 0.0 unless ``reward`` says otherwise. What the grader failed at has no reward: such a
    row enters no baseline and has advantage 0, instead of being taken for a wrong answer. What the
    model failed at, ``no answer``, counts as wrong unless a reward is set to ``exclude`` it: see
    :func:`settled`.

    Attributes:
        status: one of ``STATUSES``.
        reward: a finite number, or None.
        detail: a few words for logs.
        answer: what the completion answers, in a form in which equal answers are equal texts; what
            a vote over samples (maj@k) counts. None where the grader names none.

    Raises:
        UserError: an unknown status, a reward that is not finite, or a reward for a row that could
            not be graded.
    """

    status: str
    reward: float | None = None
    detail: str = ""
    answer: str | None = None

    def __post_init__(self) -> None:
        choose("verdict", self.status, STATUSES)
        set_field = object.__setattr__  # frozen for everyone else
        if self.status in (CORRECT, WRONG) and self.reward is None:
            set_field(self, "reward", float(self.status == CORRECT))
        if self.reward is not None:
            if self.status not in (CORRECT, WRONG, NO_ANSWER):
                raise UserError(f"a verdict '{self.status}' has no reward, got {self.reward}")
            set_field(self, "reward", _finite(self.reward))
        set_field(self, "detail", _fit(self.detail))
        if self.answer is not None:
            set_field(self, "answer", _fit(self.answer))

    @property
    def excluded(self) -> bool:
        """Whether the row could not be graded, so that no reward of it means anything."""
        return self.reward is None and self.status != SKIPPED


def verdict_of(value: Any) -> Verdict:
    """The verdict behind what a TRL reward function returned for one completion.

    A number is its reward, and counts as ``correct`` from 1.0 on; None is ``skipped``.

    Raises:
        UserError: not a verdict, a finite number or None.
    """
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict(SKIPPED)
    number = _finite(value)
    return Verdict(CORRECT if number >= FULL_REWARD else WRONG, number)


def settled(verdict: Verdict, no_answer: str) -> Verdict:
    """The verdict, with ``no answer`` rewarded as a reward function's setting says.

    Args:
        verdict: what the grader said.
        no_answer: ``wrong``, so that it has reward 0 unless the grader named another, or
            ``exclude``, so that it has none.
    """
    if verdict.status != NO_ANSWER:
        return verdict
    if no_answer == "exclude":
        return replace(verdict, reward=None)
    return replace(verdict, reward=0.0) if verdict.reward is None else verdict


def values_of(rewards: Any, expected: int) -> list[Any]:
    """What a reward function returned, as one value for each completion.

    A text, a mapping, its keys, a set and a table can be iterated too, but not over rewards in the
    completions' order.

    Raises:
        UserError: another kind of value, or another number of values; the sentence's subject is
            left out.
    """
    try:
        # A data frame has two dimensions and gives its columns' names; a series has keys, too.
        dimensions = getattr(rewards, "ndim", None if hasattr(rewards, "keys") else 1)
        if isinstance(rewards, NO_LISTS) or dimensions != 1:
            raise TypeError
        values = list(rewards)
    except TypeError:
        raise UserError(
            f"returned a {type(rewards).__name__}; it must return a list with one number "
            "(or None) per completion"
        ) from None
    if len(values) != expected:
        raise UserError(
            f"returned {len(values)} rewards for {expected} completion"
            f"{'s' * (expected != 1)}; it must return exactly one per completion"
        )
    return values


def _fit(text: Any) -> str:
    """Short and fit for any file: it comes from graders and from what models write."""
    return str(text)[:LONGEST_DETAIL].encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> float:
    """A number that trainers can hold, which count in single precision."""
    try:
        if isinstance(value, (str, bytes, bytearray)):  # float would read "1"
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{_short(value)} is not a number") from None
    if not abs(number) <= LARGEST:
        raise UserError(
            f"the reward is {number}; return None for a completion that cannot be graded"
        )
    return number


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the content of a conversation's last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def grader(
    tests_gold: bool = False,
    own_limits: bool = False,
    prepare: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[[Function], Function]:
    """Mark a reward function as one that reads no column but those that it names.

    Args:
        tests_gold: it says ``gold unparseable`` whatever the completion, so that golds can be
            judged alone before training.
        own_limits: it starts processes of its own, and takes ``timeout`` and ``memory`` to hold
            them to the limits of one completion.
        prepare: called with its options before it is used; raises UserError where it cannot be.
    """

    def mark(function: Function) -> Function:
        marks = {"named_only": True, "tests_gold": tests_gold, "own_limits": own_limits}
        vars(function).update(marks, prepare=prepare)
        return function

    return mark
