"""Rollouts as the report shows them: read from their lines, checked, cut to what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefix_rft.runs.numbers import count, damage, finite
from prefix_rft.runs.rollouts import HYBRID, POLICY, mean_reward, origin
from prefix_rft.support.errors import UserError

LONGEST = 2000
"""Characters of a text, and tokens of a completion, that are kept for the page."""

MOST_ROWS = 16
"""Rows of a group that are shown."""


@dataclass(frozen=True)
class Text:
    """The start of a text and the length of the whole in characters."""

    start: str
    characters: int


@dataclass(frozen=True)
class Sample:
    """One row of a group.

    Attributes:
        row: its number in the group.
        kind: ``on-policy``, ``hybrid`` or ``demonstration``.
        tokens: of the completion with its prefix.
        prefix_length: tokens of it that are a prefix.
        ids: the first tokens.
        kept: places of the prefix tokens that were trained; None where that is not recorded.
        text: the completion with its prefix.
        reward: None where it could not be graded.
        advantage: None where it was not known when the row was written.
        verdicts: grader, status, detail.
        truncated: whether it ran into the length limit.
    """

    row: int
    kind: str
    tokens: int
    prefix_length: int
    ids: Sequence[int]
    kept: frozenset[int] | None
    text: Text
    reward: float | None
    advantage: float | None
    verdicts: Sequence[tuple[str, str, str]]
    truncated: bool


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt at one step.

    Attributes:
        step: of the generation.
        number: of the group in it.
        example: row of the dataset.
        attempt: how often the group was sampled before.
        prompt: its text.
        samples: the first ``MOST_ROWS`` rows.
        rows: how many there are.
        policy_reward: mean over on-policy rows that could be graded; None without any.
        hybrid_reward: the same over hybrid rollouts.
    """

    step: int
    number: int
    example: int
    attempt: int
    prompt: Text
    samples: Sequence[Sample]
    rows: int
    policy_reward: float | None
    hybrid_reward: float | None


def group_of(rows: Sequence[Mapping[str, Any]], step: int) -> Group:
    """A group from its lines."""
    first = rows[0]
    return Group(
        step=step,
        number=count(first["group"]),
        example=count(first["example"]),
        attempt=count(first.get("attempt", 0)),
        prompt=_text(first["prompt"]),
        samples=[_sample(row) for row in rows[:MOST_ROWS]],
        rows=len(rows),
        policy_reward=mean_reward(rows, POLICY),
        hybrid_reward=mean_reward(rows, HYBRID),
    )


def _sample(row: Mapping[str, Any]) -> Sample:
    ids = row["completion_ids"]
    kept = row.get("kept")
    verdicts = row.get("verdicts") or {}
    return Sample(
        row=count(row["row"]),
        kind=origin(row),
        tokens=len(ids),
        prefix_length=count(row["prefix_length"]),
        ids=[count(i) for i in ids[:LONGEST]],
        kept=None if kept is None else frozenset(count(k) for k in kept),
        text=_text(row["text"]),
        reward=finite(row["reward"]),
        advantage=finite(row["advantage"]),
        verdicts=[(g, str(v["status"]), str(v.get("detail", ""))) for g, v in verdicts.items()],
        truncated=bool(row["truncated"]),
    )


def _text(value: Any) -> Text:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return Text(value[:LONGEST], len(value))


def damaged(path: str, error: Exception) -> UserError:
    """The refusal of a file whose rows are not what the library writes."""
    return UserError(
        f"'{path}' is damaged: a row is no rollout of prefix-rft ({damage(error)}); move the file "
        "away to report on the others"
    )
