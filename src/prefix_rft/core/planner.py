"""Where the rows of a group start: at the prompt, inside a demonstration, or at its end.

A planner is a pure function of the group it is asked about. What it remembers from step to step
(solve rates, intervals) is plain numbers that the engine keeps, and saves with every checkpoint.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefix_rft.core.hint import Hint
from prefix_rft.core.prefix import PrefixSampler, draw_prefix, generator, is_hybrid, prefix_length
from prefix_rft.core.store import Seen, Store
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Start:
    """A row starts from the first ``length`` tokens of demonstration ``index``.

    ``length`` may be all of it: then the row is a whole demonstration and nothing is sampled. Where
    the planner writes hints the tokens stand in the row's prompt, and it is always sampled.
    Behind the demonstrations of an example its own rollouts are counted, those that a planner's
    store has kept. ``guarded`` says that it was to be longer, beyond its group's limit. Where
    ``trained`` is False a prefix is context in this row, also for a method that trains prefixes.
    """

    index: int
    length: int
    ratio: float | None = None
    guarded: bool = field(default=False, compare=False)
    trained: bool = True


Starts = tuple[Start | None, ...]
"""One for each row of a group; None is an on-policy row."""

Record = Mapping[str, float]

BOUNDARIES = ("line", "blank_line")
"""What may end a step of a demonstration."""


@dataclass(frozen=True)
class Group:
    """A group that is about to be sampled.

    Attributes:
        example: the example's index in the dataset.
        rows: the number of the group's rows.
        lengths: tokens of each demonstration of the example, EOS included; may be empty.
        seed: the run's seed.
        step: optimizer step at which the group is generated.
        total_steps: steps of the run, the horizon of open schedules.
        max_length: completion budget in tokens.
        attempt: 0, and more when the group is sampled again because every row of it failed.
        attempts: how many times a group may be sampled again.
        own: what the planner remembers of this example; empty at first.
        shared: what it remembers of all.
        boundaries: for each demonstration, the lengths at which a step of it ends, as the planner's
            ``needs_boundaries`` says.
        solved_above: a row is solved if its reward exceeds this.
        seen: own rollouts of the example that the planner's store has kept, the newest first.
        in_prompt: what rows start from stands in the prompt, so that it may be all of a source.
        limits: for each of ``sources`` the longest prefix of it that a row may start from; empty
            where nothing is limited. The engine holds every start to it.
        rewards: the rewards of the rows, NaN where one could not be graded and None where it waits
            for others; empty while none has been sampled.
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
    seen: tuple[Seen, ...] = ()
    in_prompt: bool = False
    limits: tuple[int, ...] = ()
    rewards: tuple[float | None, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """Tokens of everything that rows may start from: demonstrations, then own rollouts."""
        return (*self.lengths, *(s.length for s in self.seen))

    def random(self, row: int = 0) -> random.Random:
        """A random source of (seed, step, example, row) and nothing else."""
        return generator(self.seed, self.step, self.example, row)

    def start(self, index: int, ratio: float) -> Start:
        """The start at this share of a source, within its limit; a token is left to sample."""
        if self.in_prompt:
            length = math.floor(ratio * self.sources[index] + 1e-9)
            return self.within(Start(index, length, ratio))
        length = prefix_length(ratio, self.sources[index], 0, self.max_length)
        return self.within(Start(index, length, ratio))

    def within(self, start: Start) -> Start:
        """The start, no longer than its source's limit; a whole demonstration stays as it is.

        What is learnt from a start is learnt from its share, so that is the shorter one's too.
        """
        if not self.limits:
            return start
        whole = self.sources[start.index]
        if start.length == whole and not self.in_prompt:
            return start
        limit = self.limits[start.index]
        if start.length <= limit:
            return start
        return replace(start, length=limit, ratio=limit / whole, guarded=True)

    def newest(self, solved: bool) -> int | None:
        """The index, among all sources, of the newest own rollout of a kind; None without any."""
        at = next((i for i, s in enumerate(self.seen) if s.solved == solved), None)
        return None if at is None else len(self.lengths) + at

    def is_wrong(self, start: Start) -> bool:
        """Whether it is inside an own rollout that did not solve the problem."""
        at = start.index - len(self.lengths)
        return at >= 0 and not self.seen[at].solved

    def everyone(self, start: Start | None) -> Starts:
        """The same start for every row."""
        return (start,) * self.rows


class Planner:
    """Decides where rows start. Derive a frozen dataclass from it and give it ``starts``.

    Attributes:
        needs_boundaries: which of the group's boundaries it reads, of ``BOUNDARIES``; empty for
            none.
        fixed: every group has as many hybrid rows and whole demonstrations as the two numbers say.
        num_hybrid: rows of each group that start from a demonstration prefix.
        num_demonstrations: rows of each group that are a whole demonstration.
        prefix: the law of the prefix length, where it is one for all groups.
        store: what of own rollouts is kept for it; None for nothing.
        hint: how what rows start from is written into their prompts; None for a prefix of the
            answer.
        needs_demonstrations: without any it is of no use; asked of planners that are not fixed.
    """

    store: Store | None = None
    hint: Hint | None = None
    needs_demonstrations = True
    needs_boundaries = ""
    fixed = False
    num_hybrid: int = 0
    num_demonstrations: int = 0
    prefix: PrefixSampler | None = None

    def turns(self, rows: int) -> tuple[int, ...]:
        """In which turn each row of a group of so many is sampled, from 0; all in the first.

        Rows of a later turn wait until those before them have their rewards. ``starts`` is then
        asked again, with ``group.rewards``: of its answer the rows whose turn it is count.

        Raises:
            UserError: it cannot plan groups of this size.
        """
        return (0,) * rows

    @property
    def waits(self) -> bool:
        """Whether rows may wait for others of their group."""
        return type(self).turns is not Planner.turns

    @property
    def remembers(self) -> bool:
        """Whether it learns from its groups."""
        return type(self).learn is not Planner.learn

    def starts(self, group: Group) -> Starts:
        """One start for each row. Not called for a group without anything to start from."""
        raise NotImplementedError

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """What to remember of the example, and of all, once the group's rewards are known.

        Args:
            group: the group as it was planned.
            starts: the starts of its rows.
            rewards: the rewards of its rows, NaN where there is none.
        """
        return group.own, group.shared


@dataclass(frozen=True)
class RandomPrefix(Planner):
    """Prefix-RFT's rows: the first ones draw a prefix each, the next are whole demonstrations.

    Attributes:
        num_hybrid: rows of each group that start from a demonstration prefix.
        num_demonstrations: rows of each group that are a whole demonstration.
        prefix: the law of the prefix length; needed when ``num_hybrid`` is positive.
    """

    num_hybrid: int = 0
    num_demonstrations: int = 0
    prefix: PrefixSampler | None = None
    fixed = True

    def __post_init__(self) -> None:
        if self.num_hybrid < 0 or self.num_demonstrations < 0:
            raise UserError("numbers of hybrid and demonstration rows must be at least 0")
        if self.num_hybrid and self.prefix is None:
            raise UserError("hybrid rows need a prefix sampler, which draws their length")

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
            return Start(draw.index, draw.length, draw.ratio)
        if row < self.num_hybrid + self.num_demonstrations:
            index = group.random(row).randrange(len(group.lengths))
            return Start(index, group.lengths[index], 1.0)
        return None


class OnPolicy(RandomPrefix):
    """Every row starts at the prompt."""


@dataclass(frozen=True)
class Lengthening(Planner):
    """Another planner's starts, lengthened each time the group is sampled again.

    A prefix then covers half of what was left of its demonstration, and half again. Where the
    group has no prefix at all, its on-policy rows branch from one (BREAD, arXiv 2506.17211): the
    k-th time of n they share the first ``k / (n + 1)`` of a demonstration. Whole demonstrations
    stay.
    """

    inner: Planner = RandomPrefix()

    def __post_init__(self) -> None:
        if self.inner.waits:
            raise UserError("a planner whose rows wait for one another cannot be lengthened")

    @property
    def needs_boundaries(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the planner within."""
        return self.inner.needs_boundaries

    @property
    def store(self) -> Store | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the planner within."""
        return self.inner.store

    @property
    def hint(self) -> Hint | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the planner within."""
        return self.inner.hint

    @property
    def needs_demonstrations(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the planner within."""
        return self.inner.needs_demonstrations

    def starts(self, group: Group) -> Starts:
        """The planner's own starts at first, then longer ones."""
        plain = self.inner.starts(replace(group, attempt=0))
        if not group.attempt:
            return plain
        if any(s is not None and 0 < s.length < group.sources[s.index] for s in plain):
            return tuple(s and self._longer(group, s) for s in plain)
        if not group.lengths:
            return plain
        index = group.random().randrange(len(group.lengths))
        branch = group.start(index, group.attempt / (group.attempts + 1))
        return tuple(branch if s is None or not s.length else s for s in plain)

    @staticmethod
    def _longer(group: Group, start: Start) -> Start:
        whole = group.sources[start.index]
        if start.length == whole:
            return start
        ratio = start.length / whole if start.ratio is None else start.ratio
        return group.start(start.index, 1.0 - (1.0 - ratio) * 0.5**group.attempt)

    def learn(
        self, group: Group, starts: Starts, rewards: Sequence[float]
    ) -> tuple[Record, Record]:
        """As the planner within."""
        return self.inner.learn(group, starts, rewards)

    @property
    def remembers(self) -> bool:
        """As the planner within."""
        return self.inner.remembers
