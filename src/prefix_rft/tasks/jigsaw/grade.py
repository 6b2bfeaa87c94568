"""The reward of a jigsaw (arXiv 2506.23508) in its three parts: R_acc, R_hit and R_fmt.

Each is a grader of its own, so that a run shows them apart and a recipe weighs them; their sum at
weights of 1 is the paper's reward. A jigsaw is solved where all places are right, whatever the
others say: a sum above 1 would not tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prefix_rft.rewards.marked import CLOSE, OPEN, opens_thinking
from prefix_rft.rewards.verdict import (
    CORRECT,
    GOLD_UNPARSEABLE,
    NO_ANSWER,
    WRONG,
    Verdict,
    completion_text,
    grader,
)

THINK = (OPEN, CLOSE)
ANSWER = ("<answer>", "</answer>")
LONGEST = 400
"""Characters of an answer that is read."""
# ASCII digits only, and few enough that no integer is expensive.
_NUMBER = re.compile(r"[0-9]{1,4}")


@grader(tests_gold=True)
def accuracy(completions: Sequence[Any], answer: Sequence[Any], **kwargs: Any) -> list[Verdict]:
    """R_acc: 1 where the number of every place is right, else 0, as a TRL reward function.

    The answer is what stands in the last answer tags, whatever stands around them.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        answer: the right numbers, as a text with blanks between them.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    return [_compare(c, gold, False) for c, gold in zip(completions, answer, strict=True)]


@grader(tests_gold=True)
def hits(completions: Sequence[Any], answer: Sequence[Any], **kwargs: Any) -> list[Verdict]:
    """R_hit: the share of the places whose number is right, 0 where numbers miss or are too many.

    Args:
        completions: see :func:`accuracy`.
        answer: see there.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    return [_compare(c, gold, True) for c, gold in zip(completions, answer, strict=True)]


@grader()
def form(
    completions: Sequence[Any], *, prompts: Sequence[Any] | None = None, **kwargs: Any
) -> list[Verdict]:
    """R_fmt: 1 where the whole text is a thought in its tags and an answer in its own, else 0.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    texts = map(completion_text, completions)
    return [
        Verdict(CORRECT if formed(OPEN * inside + text) else WRONG)
        for text, inside in zip(texts, opened, strict=True)
    ]


def _compare(completion: Any, gold: Any, shares: bool) -> Verdict:
    """What an answer is worth: 1 or 0, or with ``shares`` its share of right places."""
    expected = parse("" if gold is None else str(gold))
    if not expected:
        return Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r:.60}")
    found = extract(completion_text(completion))
    if found is None:
        return Verdict(NO_ANSWER)
    numbers = parse(found)
    if numbers is None or len(numbers) != len(expected):
        return Verdict(WRONG, detail=f"not {len(expected)} numbers: {found:.60}")
    right = sum(a == b for a, b in zip(numbers, expected, strict=True))
    whole = right == len(expected)
    value = right / len(expected) if shares else float(whole)
    answer = " ".join(map(str, numbers))
    detail = f"{right} of {len(expected)} places"
    return Verdict(CORRECT if whole else WRONG, value, detail, answer)


def parse(text: str) -> list[int] | None:
    """The numbers of ``2 1 4 3``, ``2, 1, 4, 3`` or ``[2, 1, 4, 3]``; None for anything else."""
    text = text[: LONGEST + 1].strip()
    if len(text) > LONGEST:
        return None
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    words = [word.strip() for word in text.split(",")] if "," in text else text.split()
    if not words or not all(map(_NUMBER.fullmatch, words)):
        return None
    return list(map(int, words))


def extract(text: str) -> str | None:
    """What stands in the last answer tags; None where there are none, or they are not closed."""
    _, opening, rest = text.rpartition(ANSWER[0])
    found, closing, _ = rest.partition(ANSWER[1])
    return found.strip() if opening and closing else None


def formed(text: str) -> bool:
    """Whether a text is ``<think>...</think><answer>...</answer>`` and nothing else.

    White space between and around the two does not count.
    """
    if any(text.count(tag) != 1 for tag in (*THINK, *ANSWER)):
        return False
    thought, answer = text.strip().split(CLOSE)
    answer = answer.lstrip()
    return thought.startswith(OPEN) and answer.startswith(ANSWER[0]) and answer.endswith(ANSWER[1])
