"""From completions and the rows that they belong to, to verdicts: the one way to call a grader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefix_rft.rewards.checked import is_async
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.verdict import Verdict
from prefix_rft.support.columns import OURS

RENAMED = ("prompt", "completion", "completion_ids")
"""Columns that reach a grader under another name, or in the place of which it is given ours."""


def visible(names: Iterable[str]) -> list[str]:
    """The columns that a grader may see: all but those that the library has added."""
    return [name for name in names if not name.startswith(OURS)]


def as_completion(prompt: Any, text: str) -> Any:
    """A text as a grader is given it: itself behind a text, a message behind a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def grade_texts(
    reward: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]] | None = None,
) -> list[Verdict]:
    """Verdicts on texts as completions of the rows' prompts, as in training.

    Args:
        reward: a reward function that :func:`checked` or :class:`Graded` has made.
        rows: the columns of each text.
        texts: the texts of completions, as ``Renderer.completions`` makes them of ids.
        ids: the tokens of the completions; none by default.
    """
    names = [name for name in visible(rows[0]) if name not in RENAMED]
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["prompts"] = [row["prompt"] for row in rows]
    columns["completion_ids"] = [[] for _ in rows] if ids is None else [list(i) for i in ids]
    completions = [as_completion(r["prompt"], t) for r, t in zip(rows, texts, strict=True)]
    return grade(reward, completions, columns)


def grade(
    reward: Callable[..., Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> list[Verdict]:
    """Verdicts of any reward function that :func:`checked` or :class:`Graded` has made."""
    if isinstance(reward, Graded):
        return reward.grade(completions, columns)
    extra = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
    returned = reward(completions=completions, **columns, **extra)
    if is_async(reward):
        asyncio.run(returned)
    return reward.verdicts  # pyright: ignore[reportFunctionMemberAccess]


def _ignore(name: str, value: Any) -> None:
    """Outside training nothing is logged."""


def missing_columns(rewards: Iterable[Callable[..., Any]], columns: Iterable[str]) -> list[str]:
    """Sentences about columns that a reward must be given and that are not there."""
    present = visible(columns)
    return [
        f"reward '{reward.__name__}' needs a column '{name}'; there are {', '.join(present)}"
        for reward in rewards
        if isinstance(reward, Graded)
        for name in reward.required
        if name not in present
    ]
