"""Where the rows of a group start: at the prompt, inside a demonstration, or at its end.

A planner is a pure function of the group it is asked about. What it remembers from step to step
(solve rates, intervals) is plain numbers that the engine keeps, and saves with every checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefix_rft.core.prefix import PrefixSampler, draw_prefix, generator, is_hybrid, prefix_length


@dataclass(frozen=True)
class Start:
    """A row starts from the first ``length`` tokens of demonstration ``index``.

    ``length`` may be all of it: then the row is a whole demonstration and nothing is sampled.
    """

    index: int
    length: int
    ratio: float | None = None


Starts = tuple[Start | None, ...]
"""One for each row of a group; None is an on-policy row."""

Record = Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """A group that is about to be sampled.

    Attributes:
        example: the example's index in the dataset.
        rows: of the group.
        lengths: tokens of each demonstration of the example, EOS included; may be empty.
        seed: the run's seed.
        step: optimizer step at which the group is generated.
        total_steps: steps of the run, the horizon of open schedules.
        max_length: completion budget in tokens.
        attempt: 0, and more when the group is sampled again because every row of it failed.
        attempts: how many times a group may be sampled again.
        own: what the planner remembers of this example; empty at first.
        shared: what it remembers of all.
        boundaries: for each demonstration, the lengths at which a step of it ends.
        solved_above: a row is solved if its reward exceeds this.
    """

    example: int
    rows: int
    lengths: tuple[int, ...]
    seed: int = 0
    step: int = 0
    total_steps: int = 1
    max_length: int | None = None
    attempt: int = 0
    attempts: int = 1
    own: Record = field(default_factory=dict)
    shared: Record = field(default_factory=dict)
    boundaries: tuple[tuple[int, ...], ...] = ()
    solved_above: float = 0.0

    def random(self, row: int = 0) -> random.Random:
        """A random source of (seed, step, example, row) and nothing else."""
        return generator(self.seed, self.step, self.example, row)

    def start(self, index: int, ratio: float) -> Start:
        """The start at this share of a demonstration; at least one token is left to sample."""
        length = prefix_length(ratio, self.lengths[index], 0, self.max_length)
        return Start(index, length, ratio)

    def everyone(self, start: Start | None) -> Starts:
        """The same start for every row."""
        return (start,) * self.rows


class Planner:
    """Decides where rows start. Derive a frozen dataclass from it and give it ``starts``.

    ``lengthens`` says that a group which is sampled again (``attempt`` above 0) starts from longer
    prefixes, and ``needs_boundaries`` that the planner reads the group's boundaries.
    """

    lengthens = False
    needs_boundaries = False

    def starts(self, group: Group) -> Starts:
        """One start for each row. Not called for a group without demonstrations."""
        raise NotImplementedError

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """What to remember of the example, and of all, once the group's rewards are known.

        Args:
            group: as it was planned.
            starts: of its rows.
            rewards: of its rows, NaN where there is none.
        """
        return group.own, group.shared


@dataclass(frozen=True)
class RandomPrefix(Planner):
    """Prefix-RFT's law: the first rows draw a prefix each, the next ones are whole demonstrations.

    Sampled again, a hybrid row's prefix covers half of what was left, and half again.
    """

    num_hybrid: int = 0
    num_demonstrations: int = 0
    prefix: PrefixSampler | None = None
    lengthens = True

    def starts(self, group: Group) -> Starts:
        """Prefixes first, whole demonstrations next, then on-policy rows."""
        return tuple(self._start(group, row) for row in range(group.rows))

    def _start(self, group: Group, row: int) -> Start | None:
        if is_hybrid(row, self.num_hybrid) and self.prefix is not None:
            draw = draw_prefix(
                self.prefix,
                group.lengths,
                seed=group.seed,
                step=group.step,
                total_steps=group.total_steps,
                example=group.example,
                row=row,
                max_length=group.max_length,
            )
            if not group.attempt:
                return Start(draw.index, draw.length, draw.ratio)
            return group.start(draw.index, 1.0 - (1.0 - draw.ratio) * 0.5**group.attempt)
        if row < self.num_hybrid + self.num_demonstrations:
            index = group.random(row).randrange(len(group.lengths))
            return Start(index, group.lengths[index], 1.0)
        return None


@dataclass(frozen=True)
class Branch(Planner):
    """On-policy rows first; sampled again, they all branch from one demonstration (BREAD).

    The k-th time of n they share the first ``k / (n + 1)`` of it. ``num_demonstrations`` rows are
    whole demonstrations throughout.
    """

    num_demonstrations: int = 0
    lengthens = True

    def starts(self, group: Group) -> Starts:
        """No prefix at first, then one for all rows but the whole demonstrations."""
        plain = RandomPrefix(0, self.num_demonstrations).starts(group)
        if not group.attempt:
            return plain
        index = group.random().randrange(len(group.lengths))
        start = group.start(index, group.attempt / (group.attempts + 1))
        return tuple(start if whole is None else whole for whole in plain)
