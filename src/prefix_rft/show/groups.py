"""Which groups of a run to show, and in which order.

A run may hold hundreds of thousands of rollouts: one generation is in memory at a time, and of each
group only where it is and its mean reward are kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefix_rft.rewards.verdict import CORRECT, FULL_REWARD, SKIPPED
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import HYBRID, POLICY, Rollout, mean_reward
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Span:
    """Whole numbers from ``low`` to ``high``, as someone typed them."""

    low: int
    high: float
    typed: str

    def __contains__(self, number: int) -> bool:
        return self.low <= number <= self.high


def read_range(name: str, typed: str | None) -> Span | None:
    """``7``, ``3-9`` or ``3-``.

    Raises:
        UserError: it is none of these.
    """
    if typed is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})(-([0-9]{1,9})?)?", typed)
    if not match:
        raise UserError(f"{name} must be N, A-B or A- (like 5, 3-9 or 3-), got '{typed}'")
    low = int(match[1])
    high = low if not match[2] else int(match[3]) if match[3] else math.inf
    if high < low:
        raise UserError(f"{name} {typed} ends before it begins")
    return Span(low, high, typed)


class Place(NamedTuple):
    """Where a group is, and its mean reward.

    ``kind`` is 0 for a mean of on-policy rows, 1 for one of hybrid rows where no on-policy row has
    a reward, and 2 where none of either has one.
    """

    kind: int
    mean: float
    step: int
    group: int


@dataclass(frozen=True)
class Filters:
    """Which groups are wanted."""

    step: Span | None = None
    verdict: str | None = None
    prefix: Span | None = None

    def take(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether a group of these rollouts is wanted, whatever its step."""
        lengths = [r.prefix_length or r.hint_length for r in rollouts if r.origin == HYBRID] or [0]
        right = self.verdict is None or any(self.verdict in statuses(r) for r in rollouts)
        return right and (self.prefix is None or any(n in self.prefix for n in lengths))

    def __str__(self) -> str:
        parts = [f"the verdict '{self.verdict}'"] if self.verdict else []
        parts += [f"a prefix of {self.prefix.typed} tokens"] if self.prefix else []
        return " and ".join(parts) + (f" at step {self.step.typed}" if self.step else "")


def find(folder: RunFolder, filters: Filters, best: bool) -> list[Place]:
    """The groups that are wanted, in the order of their means; of equal ones the later first.

    Groups without any on-policy reward come behind all others.

    Raises:
        UserError: there are none.
    """
    steps = folder.generations()
    if not steps:
        raise UserError(f"'{folder.path}' has no rollouts: {why_none(folder)}")
    wanted = [s for s in steps if filters.step is None or s in filters.step]
    if filters.step is not None and not wanted:
        raise UserError(
            f"'{folder.path}' has no rollouts of step {filters.step.typed}: "
            f"it has those of {len(steps)} steps from {steps[0]} to {steps[-1]}"
        )
    places, graded = [], False
    for step in wanted:
        for group, rollouts in load(folder, step).items():
            graded = graded or any(r.verdicts for r in rollouts)
            if filters.take(rollouts):
                places.append(Place(*mean(rollouts), step, group))
    if not places and filters.verdict and not graded:
        raise UserError(f"the rollouts of '{folder.path}' hold no verdicts: leave out --verdict")
    if not places:
        raise UserError(f"no group of '{folder.path}' has {filters}")
    sign = -1 if best else 1
    return sorted(places, key=lambda p: (p.kind, sign * p.mean, -p.step, p.group))


def why_none(folder: RunFolder) -> str:
    """Why a run has written no rollouts."""
    trainer = folder.recipe().get("trainer")
    logged = trainer.get("log_rollouts") if isinstance(trainer, dict) else None
    if logged is None:  # the key is one of methods that sample
        return "a run of an imitation method samples nothing"
    return "it has not sampled yet" if logged else "log_rollouts was off"


def load(folder: RunFolder, step: int) -> dict[int, list[Rollout]]:
    """The groups of a generation.

    Raises:
        UserError: a rollout is not what a run writes.
    """
    groups: dict[int, list[Rollout]] = {}
    for rollout in folder.rollouts(step):
        groups.setdefault(rollout.group, []).append(rollout)
    return groups


def mean(rollouts: Sequence[Rollout]) -> tuple[int, float]:
    """Mean reward of the on-policy rows, or of the hybrid ones where no other has any."""
    for kind, origin in enumerate((POLICY, HYBRID)):
        if (reward := mean_reward(rollouts, origin)) is not None:
            return kind, reward
    return 2, 0.0


def statuses(rollout: Rollout) -> list[str]:
    """What the graders say, in their order."""
    return [verdict["status"] for verdict in rollout.verdicts.values()]


def solved(rollout: Rollout) -> bool:
    """Whether the first grader that applies calls it correct; by its reward in older runs."""
    applied = [s for s in statuses(rollout) if s != SKIPPED]
    return applied[0] == CORRECT if applied else (rollout.reward or 0.0) >= FULL_REWARD
