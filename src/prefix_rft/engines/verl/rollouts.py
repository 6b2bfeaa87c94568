"""The rollouts of a step as the TRL engine writes them, from verl's columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from prefix_rft.core import Method
from prefix_rft.engines.rollouts import stream_of
from prefix_rft.engines.verl.columns import (
    ADVANTAGE,
    ATTEMPT,
    PREFIX,
    REWARD,
    TRUNCATED,
    WHOLE,
    padded,
)
from prefix_rft.runs.rollouts import Rollout

VERDICTS = "verdicts"
"""Among what a reward manager adds to a row: of each grader, as JSON."""

FIELDS = (
    *("prompts", "responses", "index", "extra_fields"),
    *(PREFIX, WHOLE, REWARD, ATTEMPT, ADVANTAGE, TRUNCATED),
)
"""Columns that are read."""


def rollouts_of(
    method: Method,
    data: Any,
    keys: Sequence[str],
    fillers: Sequence[bool],
    step: int,
    spelled: Callable[[list[list[int]]], list[str]],
) -> list[dict[str, Any]]:
    """Lines of the rows, by group and place; none for those that only fill the batch.

    Args:
        method: the method whose rollouts they are.
        data: the columns ``FIELDS`` of all rows.
        keys: verl's, ``UID_ROLLOUT_OUTPUT``.
        fillers: which rows only fill the batch.
        step: verl's steps before this one.
        spelled: ids of several as texts.
    """
    prompts, responses = (list(data[name].unbind()) for name in ("prompts", "responses"))
    index, extras = (list(data[name]) for name in ("index", "extra_fields"))
    advantage_NS = padded(data[ADVANTAGE])
    names = [key.rsplit("_", 2)[0] for key in keys]
    real = [i for i, filler in enumerate(fillers) if not filler]
    groups = dict.fromkeys(names[i] for i in sorted(real, key=lambda i: (int(index[i]), names[i])))
    number = {name: n for n, name in enumerate(groups)}
    lines = []
    for i in real:
        prefix, whole = int(data[PREFIX][i]), bool(data[WHOLE][i])
        prompt, completion = prompts[i].tolist(), responses[i].tolist()
        prompt_text, text = spelled([prompt, completion])
        reward = float(data[REWARD][i])
        graded = extras[i].get("reward_extra_info") or {}
        rollout = Rollout(
            step=step,
            example=int(index[i]),
            group=number[names[i]],
            row=int(keys[i].rsplit("_", 2)[1]),
            prompt_ids=prompt,
            completion_ids=completion,
            prefix_length=prefix,
            demonstration=whole,
            attempt=int(data[ATTEMPT][i]),
            prompt=prompt_text,
            text=text,
            reward=None if reward != reward else reward,
            verdicts=json.loads(graded.get(VERDICTS, "{}")),
            advantage=float(advantage_NS[i, stream_of(method, prefix > 0, whole)]),
            truncated=bool(data[TRUNCATED][i]),
        )
        lines.append(rollout.line())
    return sorted(lines, key=lambda line: (line["group"], line["row"]))
