r"""reasoning-gym's own graders, on an answer that is taken out of the completion."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from prefix_rft.rewards.marked import behind_thinking, last_box, opens_thinking
from prefix_rft.rewards.verdict import (
    CORRECT,
    FULL_REWARD,
    NO_ANSWER,
    WRONG,
    Verdict,
    completion_text,
    grader,
)
from prefix_rft.support.gym import score

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
INTRODUCED = re.compile(r"^[ \t*#]*(?:Final )?Answer:\**(.*)\Z", re.DOTALL | re.MULTILINE)


@grader()
def reasoning_gym(
    completions: Sequence[Any],
    puzzle: Sequence[str],
    *,
    prompts: Sequence[Any] | None = None,
    extract: str | None = None,
    partial_credit: bool = True,
    **kwargs: Any,
) -> list[Verdict]:
    r"""What each puzzle's own task says of the completion's answer, in TRL's reward signature.

    The answer is what stands in the last ``<answer>`` tags, else in the last ``\boxed{}``, else
    behind the last line that begins with ``Answer:``, else the text behind ``</think>``. A
    completion that ends inside its thinking has none.

    Args:
        completions: texts or conversations.
        puzzle: the column that ``train_data: {reasoning_gym: ...}`` writes.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking.
        extract: regular expression whose last match is the answer (its first group where it has
            one), in place of the rule above.
        partial_credit: reward an answer that is not right with the task's own score, which many
            tasks put at a few hundredths; otherwise with 0.
        **kwargs: other columns; not used.
    """
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    verdicts = []
    for completion, told, inside in zip(completions, puzzle, opened, strict=True):
        answer = answer_of(completion_text(completion), inside, extract)
        if not answer:
            verdicts.append(Verdict(NO_ANSWER))
            continue
        points = score(told, answer)
        right = points >= FULL_REWARD
        verdicts.append(
            Verdict(
                CORRECT if right else WRONG,
                points if right or partial_credit else 0.0,
                f"answer {answer:.60}",
                answer,
            )
        )
    return verdicts


def answer_of(text: str, inside: bool = False, extract: str | None = None) -> str:
    """The part of a completion that is its answer; empty where there is none.

    Args:
        text: the completion.
        inside: its prompt has opened the thinking already.
        extract: a regular expression for it.
    """
    rest = behind_thinking(text, inside)
    if rest is None:
        return ""
    if extract is not None:
        matches = list(_compiled(extract).finditer(rest))
        if not matches:
            return ""
        return (matches[-1].group(1 if matches[-1].re.groups else 0) or "").strip()
    tagged = TAGGED.findall(rest)
    if tagged:
        return tagged[-1].strip()
    boxed = last_box(rest)
    if boxed is not None:
        return boxed
    # The last such line: one may stand within what an earlier one introduces.
    introduced, behind = INTRODUCED.search(rest), rest
    while introduced is not None:
        behind = introduced.group(1)
        introduced = INTRODUCED.search(behind)
    return behind.strip()


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
