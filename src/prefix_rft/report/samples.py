"""Rollouts as the report shows them: cut to what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.runs.rollouts import HYBRID, POLICY, Rollout, mean_reward
from prefix_rft.runs.token_texts import Completion

LONGEST = 2000
"""Characters of a text, and tokens of a completion, that are kept for the page."""

MOST_ROWS = 16
"""Rows of a group that are shown."""


@dataclass(frozen=True)
class Excerpt:
    """The start of a text and the length of the whole in characters."""

    start: str
    characters: int


@dataclass(frozen=True)
class ShownRollout:
    """One row of a group.

    Attributes:
        row: its number in the group.
        origin: ``on-policy``, ``hybrid`` or ``demonstration``.
        prefix_length: the number of tokens of its completion that are a prefix.
        hint_length: the number of tokens of a demonstration that its prompt holds.
        completion: the start of the completion with its prefix.
        reward: its reward; None where it could not be graded.
        advantage: its advantage; None where it was not known when the row was written.
        verdicts: what each grader said: its name, a status, a detail.
        truncated: whether it ran into the length limit.
    """

    row: int
    origin: str
    prefix_length: int
    hint_length: int
    completion: Completion
    reward: float | None
    advantage: float | None
    verdicts: Sequence[tuple[str, str, str]]
    truncated: bool


@dataclass(frozen=True)
class ShownGroup:
    """The rollouts of one prompt at one step.

    Attributes:
        step: the step of its generation.
        number: the group's number in its generation.
        example: the index of its row in the dataset; None where that is not recorded.
        attempt: how often the group was sampled before.
        prompt: the start of the prompt.
        images: the places of its pictures in the example's columns.
        samples: the first ``MOST_ROWS`` rows.
        rows: the number of all its rows.
        policy_reward: the mean over on-policy rows that could be graded; None without any.
        hybrid_reward: the mean over hybrid rows, likewise.
    """

    step: int
    number: int
    example: int | None
    attempt: int
    prompt: Excerpt
    images: Sequence[str]
    samples: Sequence[ShownRollout]
    rows: int
    policy_reward: float | None
    hybrid_reward: float | None


def group_of(rollouts: Sequence[Rollout], step: int) -> ShownGroup:
    """A group of rollouts, cut to what is shown."""
    first = rollouts[0]
    return ShownGroup(
        step=step,
        number=first.group,
        example=first.example,
        attempt=first.attempt,
        prompt=Excerpt(first.prompt[:LONGEST], len(first.prompt)),
        images=first.images,
        samples=[_sample(rollout) for rollout in rollouts[:MOST_ROWS]],
        rows=len(rollouts),
        policy_reward=mean_reward(rollouts, POLICY),
        hybrid_reward=mean_reward(rollouts, HYBRID),
    )


def _sample(rollout: Rollout) -> ShownRollout:
    return ShownRollout(
        row=rollout.row,
        origin=rollout.origin,
        prefix_length=rollout.prefix_length,
        hint_length=rollout.hint_length,
        completion=Completion.of(rollout, characters=LONGEST, tokens=LONGEST),
        reward=rollout.reward,
        advantage=rollout.advantage,
        verdicts=[(g, v["status"], v.get("detail", "")) for g, v in rollout.verdicts.items()],
        truncated=rollout.truncated,
    )
