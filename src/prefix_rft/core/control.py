"""One number for each example: the share of a demonstration from which its rows start.

What a group can teach about its own continuations is p (1 - p) for a success rate p, most at a half
(SEELE, arXiv 2509.06923, eq. 5). A law moves the share of each example so that it gets there, from
where the last visit started and how it went. Adaptive backtracking, hints that fall with the run,
fixed cuts: each is a law, and all else is the same.

The rows that start alike are compared with one another alone: where rows of other starts share
their baseline, what differs between starts is credited to tokens that had nothing to do with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefix_rft.core.hint import Hint
from prefix_rft.core.planner import Group, Planner, Record, Start, Starts
from prefix_rft.core.prefix import is_hybrid
from prefix_rft.core.store import Store
from prefix_rft.support.errors import check_range


class Visit(NamedTuple):
    """How a group went.

    Attributes:
        start: where its guided rows started; None at the prompt.
        share: the share that was asked for; 0 for a plain visit, below 0 for an own wrong rollout.
        plain: it was to be plain, whatever the law says.
        rewards: the known rewards of its guided rows, of all rows in a plain visit.
        cap: the largest share at that step.
    """

    start: Start | None
    share: float
    plain: bool
    rewards: tuple[float, ...]
    cap: float


class Law:
    """Where the guided rows of a group start, and what is learnt from how they went.

    Derive a frozen dataclass from it. Its state is numbers by name, of each example (``group.own``)
    and of all (``group.shared``).

    Attributes:
        needs_boundaries: which of the group's boundaries it reads, as a planner says it.
        finds_sources: it may start rows where there is no source of help.
        needs_demonstrations: without any it is of no use.
    """

    needs_boundaries = ""
    finds_sources = False
    needs_demonstrations = True

    def start(self, group: Group, index: int, rng: random.Random) -> Start | None:
        """Where they start; None at the prompt, whatever its length.

        Args:
            group: the group.
            index: the source of help, a demonstration or an own right rollout; -1 for none, where
                the law ``finds_sources``.
            rng: for what is drawn.
        """
        raise NotImplementedError

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """What to remember of the example, and of all."""
        return group.own, group.shared


@dataclass(frozen=True)
class Control(Planner):
    """A law's starts, for a share of each group's rows.

    Attributes:
        law: where they start.
        guided: the share of a group's rows that start there; the others start at the prompt.
        plain: probability that a whole group starts at the prompt; None draws nothing.
        top: the largest share of a demonstration.
        withdraw: share of the run after which ``top`` falls in a line, to 0 at the end.
        own: an own right rollout, where there is one, goes before the demonstrations.
        store: what is kept of own rollouts.
        hint: how the share is written into the prompt; None for a prefix of the answer.
    """

    law: Law
    guided: float = 1.0
    plain: float | None = None
    top: float = 1.0
    withdraw: float = 1.0
    own: bool = False
    store: Store | None = None
    hint: Hint | None = None

    def __post_init__(self) -> None:
        for name in ("guided", "plain", "top", "withdraw"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0.0, 1.0)

    @property
    def needs_boundaries(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the law."""
        return self.law.needs_boundaries

    @property
    def needs_demonstrations(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the law."""
        return self.law.needs_demonstrations

    @property
    def remembers(self) -> bool:
        """Whether its law learns."""
        return type(self.law).learn is not Law.learn

    def cap(self, step: int, total_steps: int) -> float:
        """The largest share at an optimizer step."""
        begin = self.withdraw * total_steps
        if step <= begin or begin >= total_steps:
            return self.top
        return self.top * max(0.0, (total_steps - step) / (total_steps - begin))

    def _asked(self, group: Group) -> tuple[Start | None, bool]:
        """Where guided rows are to start, and whether the visit is plain."""
        rng = group.random()
        index = rng.randrange(len(group.lengths)) if group.lengths else -1
        plain = self.plain is not None and rng.random() < self.plain
        if self.own and (newest := group.newest(solved=True)) is not None:
            index = newest
        if index < 0 and not self.law.finds_sources:
            return None, plain
        start, cap = self.law.start(group, index, rng), self.cap(group.step, group.total_steps)
        if start is not None and start.ratio is not None and (start.guarded or start.ratio > cap):
            start = group.start(start.index, cap)  # one that is held was to be beyond its limit
        return start and group.within(start), plain

    def starts(self, group: Group) -> Starts:
        """One start for the guided rows, which are the first ones."""
        start, plain = self._asked(group)
        if plain or start is None or not (start.length or start.guarded):
            return group.everyone(None)
        guided = round(self.guided * group.rows)
        return tuple(start if is_hybrid(row, guided) else None for row in range(group.rows))

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """As the law does, from the rows that it guided."""
        asked, plain = self._asked(group)
        start = next((s for s in starts if s is not None), None)
        guided = group.rows if plain and start is None else round(self.guided * group.rows)
        known = tuple(r for r in rewards[:guided] if not math.isnan(r))
        share = 0.0 if plain or asked is None else asked.ratio or 0.0
        if start is not None and start.ratio is not None:
            share = start.ratio  # as it was planned, if the example has learnt since
            share = -share if group.is_wrong(start) else share
        cap = self.cap(group.step, group.total_steps)
        return self.law.learn(group, Visit(start, share, plain and start is None, known, cap))
