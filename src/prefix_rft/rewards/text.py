"""Graders for plain text: an exact answer, and a format."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from prefix_rft.rewards.marked import (
    CLOSE,
    behind_thinking,
    enclosed,
    opens_thinking,
)
from prefix_rft.rewards.verdict import (
    CORRECT,
    GOLD_UNPARSEABLE,
    NO_ANSWER,
    WRONG,
    Verdict,
    completion_text,
    grader,
)

THINK_THEN_ANSWER = r"(?s)\s*(?:<think>)?(?!<think>|\s*</think>).+</think>\s*\S.*"


@grader(tests_gold=True)
def exact(
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    prompts: Sequence[Any] | None = None,
    extract: str | None = None,
    ignore_case: bool = False,
    **kwargs: Any,
) -> list[Verdict]:
    r"""Whether each completion's answer is the gold answer, character by character.

    White space at both ends does not count, and runs of it count as one space. Markdown that
    encloses a whole answer does not count, unless the gold answer has it, too. What stands before
    the last ``</think>`` does not count, and a completion that ends inside its thinking has no
    answer.

    Args:
        completions: texts or conversations.
        answer: gold answers; numbers are written out.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking.
        extract: regular expression whose last match is the answer (its first group where it has
            one), such as ``#### (.+)``; by default the text behind ``</think>``, or all of it.
        ignore_case: treat letters of both cases alike.
        **kwargs: other columns; not used.
    """
    verdicts = []
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    for completion, gold, inside in zip(completions, answer, opened, strict=True):
        expected = _normal("" if gold is None else str(gold), ignore_case)
        found = _normal(_extract(completion_text(completion), extract, inside), ignore_case)
        while found != expected and (inner := enclosed(found)) is not None:
            found = _normal(inner, ignore_case)
        if not expected:
            verdicts.append(Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r}"))
        elif not found:
            verdicts.append(Verdict(NO_ANSWER))
        else:
            status = CORRECT if found == expected else WRONG
            verdicts.append(Verdict(status, detail=f"answer {found:.60}", answer=found))
    return verdicts


@grader()
def format(
    completions: Sequence[Any], *, pattern: str = THINK_THEN_ANSWER, **kwargs: Any
) -> list[Verdict]:
    """Whether each completion as a whole has the form of a regular expression.

    Args:
        completions: texts or conversations.
        pattern: the regular expression; by default some reasoning, ``</think>`` once or more, and
            an answer behind it; the opening tag may stand in the prompt.
        **kwargs: other columns; not used.
    """
    form = _compiled(pattern)
    return [Verdict(CORRECT if form.fullmatch(completion_text(c)) else WRONG) for c in completions]


def _extract(text: str, pattern: str | None, inside: bool) -> str:
    rest = behind_thinking(text, inside)
    if rest is None or pattern is None:
        return rest or ""
    # A pattern may begin with the tag that the answer stands behind.
    where = CLOSE + rest if CLOSE in pattern and CLOSE in text else rest
    matches = list(_compiled(pattern).finditer(where))
    if not matches:
        return ""
    return matches[-1].group(1 if matches[-1].re.groups else 0) or ""


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _normal(text: str, ignore_case: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text
