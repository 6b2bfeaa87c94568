"""The reward of a jigsaw (arXiv 2506.23508): places that are right, all of them, and the form."""

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
def reward(
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    prompts: Sequence[Any] | None = None,
    **kwargs: Any,
) -> list[Verdict]:
    """R_hit + R_acc + R_fmt in the signature of a TRL reward function.

    R_hit is the share of the places whose number is right, 0 where there are more or fewer numbers;
    R_acc is 1 where all are, and only then the verdict is ``correct``; R_fmt is 1 where the whole
    text is a thought in its tags and an answer in its own. The answer is what stands in the last
    answer tags, whatever stands around them.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        answer: the right numbers, as a text with blanks between them.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    return [
        _grade(OPEN * inside + completion_text(completion), gold)
        for completion, gold, inside in zip(completions, answer, opened, strict=True)
    ]


def _grade(text: str, gold: Any) -> Verdict:
    expected = parse("" if gold is None else str(gold))
    if not expected:
        return Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r:.60}")
    found = extract(text)
    if found is None:
        return Verdict(NO_ANSWER)
    form, numbers = formed(text), parse(found)
    if numbers is None or len(numbers) != len(expected):
        return Verdict(WRONG, float(form), f"not {len(expected)} numbers: {found:.60}")
    hits = sum(a == b for a, b in zip(numbers, expected, strict=True))
    right = hits == len(expected)
    total = hits / len(expected) + right + form
    told = f"{hits} of {len(expected)} places, {'' if form else 'not '}in form"
    return Verdict(CORRECT if right else WRONG, total, told, " ".join(map(str, numbers)))


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
