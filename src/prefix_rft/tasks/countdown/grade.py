"""Exact grading of a Countdown completion, by parsing and integer arithmetic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefix_rft.tasks.countdown.puzzle import Chain, Step, apply

# ASCII digits only, no sign, no leading zero, and few enough that no integer is expensive.
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_STEP = re.compile(rf"{_NUMBER} ([-+*/]) {_NUMBER} = {_NUMBER}")


def parse(completion: str) -> Chain | None:
    """The steps of ``a op b = c ; d op e = f``, or None where the text is anything else.

    White space around tokens is free; every token must stand alone, and nothing may be left over.
    """
    steps = []
    for part in " ".join(completion.split()).split(" ; "):
        match = _STEP.fullmatch(part)
        if match is None:
            return None
        a, op, b, c = match.groups()
        steps.append(Step(int(a), op, int(b), int(c)))
    return tuple(steps)


def well_formed(completion: str, numbers: Sequence[int]) -> bool:
    """Whether the completion is a correct chain over all ``numbers``, whatever it arrives at."""
    chain = parse(completion)
    if chain is None or len(chain) != len(numbers) - 1:
        return False
    at_hand = Counter(numbers)
    for a, op, b, c in chain:
        at_hand.subtract((a, b))
        if at_hand[a] < 0 or at_hand[b] < 0 or apply(a, op, b) != c:
            return False
        at_hand[c] += 1
    return True


def grade(completion: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the completion is a correct chain over all ``numbers`` that ends at ``target``."""
    chain = parse(completion)
    return chain is not None and chain[-1].c == target and well_formed(completion, numbers)


def reward(
    completions: Sequence[Any],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    **kwargs: Any,
) -> list[float]:
    """1.0 for a correct solution, else 0.0, in the signature of a TRL reward function.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        numbers: the numbers of each completion's puzzle.
        target: the target of each completion's puzzle.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    return [
        float(grade(text, own_numbers, own_target))
        for text, own_numbers, own_target in zip(_texts(completions), numbers, target, strict=True)
    ]


def arithmetic(
    completions: Sequence[Any], numbers: Sequence[Sequence[int]], **kwargs: Any
) -> list[float]:
    """1.0 for a correct chain over all numbers, whatever it arrives at, else 0.0.

    What a base model knows and training for the target does not reward: a measure of forgetting.
    """
    return [
        float(well_formed(text, own_numbers))
        for text, own_numbers in zip(_texts(completions), numbers, strict=True)
    ]


def _texts(completions: Sequence[Any]) -> list[str]:
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]
