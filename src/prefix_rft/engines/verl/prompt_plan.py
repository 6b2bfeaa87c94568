"""Where the rollouts of a prompt start, as it travels with the prompt to the samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from prefix_rft.core import Method
from prefix_rft.core.planner import Group, Start, Starts
from prefix_rft.core.store import Seen
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.plan import RunPoint, starts_again, starts_of


class KnownIds(NamedTuple):
    """What is known of a rollout before it is sampled.

    Attributes:
        ids: the ids that it starts from.
        whole: these are a whole demonstration, and nothing is sampled.
        context: these are context in any method.
    """

    ids: list[int]
    whole: bool = False
    context: bool = False


@dataclass(frozen=True)
class PromptPlan:
    """The plan of a prompt's group.

    Attributes:
        demonstrations: ids of those that are used, and of own rollouts, by their index.
        attempts: starts of its rollouts, for each time that the group may be sampled.
        solved_above: a rollout is solved if its reward exceeds this.
        asked: the group, for a planner that learns from it, or keeps rollouts of it, or has rows
            wait in it for others.
        step: verl's steps before it was made.
        waits: rollouts wait for others, and where they start is not known before.
    """

    demonstrations: dict[int, np.ndarray]
    attempts: tuple[Starts, ...]
    solved_above: float = 0.0
    asked: Group | None = None
    step: int = 0
    waits: bool = False

    @classmethod
    def of(cls, method: Method, example: Mapping[str, Any], moment: RunPoint) -> PromptPlan:
        """As the method's planner says."""
        asked = moment.group(method, example)
        attempts = [starts_of(method, asked)]
        lengths, again = asked.lengths, 0
        if lengths and method.groups.all_wrong == "lengthen":
            again = method.groups.attempts
        elif (
            lengths
            and method.groups.all_wrong == "demonstration"
            and not _whole(attempts[0], asked.sources)
        ):
            again = 1
        for attempt in range(1, again + 1):
            how, before = method.groups.all_wrong, attempts[-1]
            attempts.append(starts_again(method, example, moment, attempt, how, before))
        used = {s.index for starts in attempts for s in starts if s is not None and s.length}
        sources, planner = moment.with_own(example)[IDS], method.planner
        if planner.waits:  # it is not known yet which
            used = set(range(len(sources)))
        ids = {i: np.asarray(sources[i], np.int32) for i in used}
        kept = asked if planner.remembers or planner.store or planner.waits else None
        above = method.groups.solved_above
        return cls(ids, tuple(attempts), above, kept, moment.step, planner.waits)

    def plain(self) -> dict[str, Any]:
        """As plain data: verl's queue makes dicts of dataclasses on the way."""
        return {
            "demonstrations": [[i, ids.tobytes()] for i, ids in self.demonstrations.items()],
            "attempts": [
                [
                    None if s is None else [s.index, s.length, s.ratio, s.guarded, s.trained]
                    for s in starts
                ]
                for starts in self.attempts
            ],
            "solved_above": self.solved_above,
            "asked": None if self.asked is None else asdict(self.asked),
            "step": self.step,
            "waits": self.waits,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> PromptPlan:
        """From what :meth:`plain` gave."""
        asked = plain["asked"]
        if asked is not None:
            bounds = tuple(tuple(b) for b in asked["boundaries"])
            seen = tuple(Seen(*s) for s in asked["seen"])
            tuples = {name: tuple(asked[name]) for name in ("lengths", "limits", "rewards")}
            asked = Group(**{**asked, **tuples, "boundaries": bounds, "seen": seen})
        return cls(
            {int(i): np.frombuffer(ids, np.int32) for i, ids in plain["demonstrations"]},
            tuple(
                tuple(None if s is None else Start(*s) for s in starts)
                for starts in plain["attempts"]
            ),
            float(plain["solved_above"]),
            asked,
            int(plain["step"]),
            bool(plain["waits"]),
        )

    @property
    def rollouts(self) -> int:
        """Of the group."""
        return len(self.attempts[0])

    def changes(self, rollout: int, attempt: int) -> bool:
        """Whether a rollout is another one in this attempt than in the one before."""
        return not attempt or self.attempts[attempt][rollout] != self.attempts[attempt - 1][rollout]

    def known(self, rollout: int, attempt: int = 0) -> KnownIds:
        """What a rollout starts from."""
        return self.at(self.attempts[attempt][rollout])

    def at(self, start: Start | None) -> KnownIds:
        """What a rollout that starts there starts from."""
        if start is None or not start.length:
            return KnownIds([])
        ids = self.demonstrations[start.index]
        whole = start.length == len(ids)
        return KnownIds(ids[: start.length].tolist(), whole, not (whole or start.trained))

    def in_turn(self, method: Method, rollout: int, rewards: Sequence[float | None]) -> KnownIds:
        """What a rollout that has waited starts from, once others have these rewards.

        Args:
            method: the method whose planner decides.
            rollout: its place in the group.
            rewards: those of the group's rollouts, NaN where there is none, None for those that
                have not been sampled.
        """
        assert self.asked is not None  # noqa: S101  (it is there where rows wait)
        asked = replace(self.asked, rewards=tuple(rewards))
        return self.at(starts_of(method, asked)[rollout])

    def learnt(self, attempts: Sequence[int]) -> tuple[Starts, list[bool]]:
        """Where the rollouts had started, and which of them a demonstration has replaced.

        Args:
            attempts: the attempts in which each rollout was made.
        """
        starts, replaced = [], []
        for rollout, attempt in enumerate(attempts):
            instead = attempt > 0 and self.known(rollout, attempt).whole
            replaced.append(instead)
            starts.append(self.attempts[0 if instead else attempt][rollout])
        return tuple(starts), replaced


def _whole(starts: Starts, lengths: Sequence[int]) -> bool:
    """Whether a group has a whole demonstration in it."""
    return any(s is not None and s.length == lengths[s.index] for s in starts)
