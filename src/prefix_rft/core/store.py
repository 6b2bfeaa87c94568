"""A policy's own rollouts that are kept, to start later rows from: pure functions of tuples.

Only what was sampled from the prompt is a policy's own: a rollout behind a demonstration's prefix
is in part the demonstration's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefix_rft.support.errors import check_range


class Trace(NamedTuple):
    """An own rollout.

    Attributes:
        ids: its tokens, EOS included.
        solved: whether its reward was a solved one.
        step: optimizer step at which it was sampled.
    """

    ids: tuple[int, ...]
    solved: bool
    step: int


class Seen(NamedTuple):
    """What a planner is told of an own rollout.

    Attributes:
        length: tokens, EOS included.
        solved: see :class:`Trace`.
        step: see :class:`Trace`.
    """

    length: int
    solved: bool
    step: int


@dataclass(frozen=True)
class Store:
    """What is kept of each example's groups.

    Attributes:
        successes: the most solved rollouts of an example.
        failures: the most unsolved ones.
        success_below: a success is kept of groups whose success rate is below this; above 1 of all.
        failure_above: a failure is kept of groups whose success rate is above this; below 0 of all.
        tokens: the most tokens of all examples together; the oldest rollouts go first.
    """

    successes: int = 1
    failures: int = 0
    success_below: float = 1.1
    failure_above: float = -0.1
    tokens: int = 20_000_000

    def __post_init__(self) -> None:
        for name in ("successes", "failures"):
            check_range(name, getattr(self, name), 0)
        check_range("tokens", self.tokens, 1)

    def keeps(self, solved: bool) -> bool:
        """Whether rollouts of this kind are kept of any group."""
        return (self.successes if solved else self.failures) > 0

    def wants(self, solved: bool, rate: float) -> bool:
        """Whether a rollout of a group with this success rate is kept."""
        if solved:
            return self.keeps(True) and rate < self.success_below
        return self.keeps(False) and rate > self.failure_above


Own = tuple[tuple[int, ...] | None, bool]
"""An own rollout of a group: its tokens, which may be left out where its kind is not kept, and
whether it is solved."""


def chosen(store: Store, own: Sequence[Own], step: int, rng: random.Random) -> tuple[Trace, ...]:
    """One success and one failure of a group, as far as the store wants one and there is any.

    Args:
        store: what is kept.
        own: those of the group's own rollouts that were graded, in the order of its rows.
        step: the optimizer step at which they were sampled.
        rng: picks among several.
    """
    if not own:
        return ()
    rate, picked = sum(solved for _, solved in own) / len(own), []
    for kind in (True, False):
        known = [ids for ids, solved in own if solved == kind and ids is not None]
        if known and store.wants(kind, rate):
            picked.append(Trace(known[rng.randrange(len(known))], kind, step))
    return tuple(picked)


def merged(store: Store, old: Sequence[Trace], new: Sequence[Trace]) -> tuple[Trace, ...]:
    """An example's rollouts: the newest first, equal ones once, no more of a kind than asked."""
    left = {True: store.successes, False: store.failures}
    kept: dict[tuple[int, ...], Trace] = {}
    for trace in (*new, *old):
        if trace.ids not in kept and left[trace.solved]:
            kept[trace.ids] = trace
            left[trace.solved] -= 1
    return tuple(kept.values())


def bounded(store: Store, traces: Mapping[int, Sequence[Trace]]) -> dict[int, tuple[Trace, ...]]:
    """The rollouts of all examples within ``tokens``: those of the oldest steps go first."""
    total = sum(len(t.ids) for some in traces.values() for t in some)
    left = {example: list(some) for example, some in traces.items()}
    if total > store.tokens:
        ages = sorted((t.step, example, t) for example, some in traces.items() for t in some)
        for _, example, trace in ages:
            if total <= store.tokens:
                break
            left[example].remove(trace)
            total -= len(trace.ids)
    return {example: tuple(some) for example, some in left.items() if some}
