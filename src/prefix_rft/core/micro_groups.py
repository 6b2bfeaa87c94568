"""Rows that get help once those before them have failed: TRAPO's groups (arXiv 2512.17636)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefix_rft.core.planner import Group, Planner, Start, Starts
from prefix_rft.support.errors import UserError, check_range


@dataclass(frozen=True)
class MicroGroup:
    """Rows of a group that are sampled together.

    Attributes:
        rows: how many.
        share: the share of a demonstration from which they start where rows before them failed.
        below: these have where their rewards sum to less.
    """

    rows: int
    share: float = 0.0
    below: float = 0.0

    def __post_init__(self) -> None:
        check_range("the rows of a micro-group", self.rows, 1)
        check_range("the share of a micro-group", self.share, 0.0, 1.0)


@dataclass(frozen=True)
class MicroGroups(Planner):
    """The rows of a group in turns: each starts from more of a demonstration, or at the prompt.

    A micro-group starts from its share if the rewards of all rows before it sum to less than its
    bound; one without a reward counts as 0. The end of a prefix moves forward to the next blank
    line, if it is not far. Share 1 is the whole demonstration as a row. The rows of a micro-group
    start alike, so of their prefixes only the last row's is trained.

    Attributes:
        parts: the micro-groups, in the order in which they are sampled.
        forward: the share of a demonstration within which a blank line is near.
    """

    parts: tuple[MicroGroup, ...]
    forward: float = 0.3
    needs_boundaries = "blank_line"

    @classmethod
    def of(cls, sizes: Any, shares: Any, below: Any, forward: float = 0.3) -> MicroGroups:
        """From one list for each number of a micro-group.

        Raises:
            UserError: these are no lists of numbers of the same length.
        """
        lists = (sizes, shares, below)
        listed = all(isinstance(x, (list, tuple)) for x in lists)
        if not listed or not sizes or not len(sizes) == len(shares) == len(below):
            raise UserError(
                "sizes, shares and below must be lists with a number for each micro-group, got "
                f"{sizes}, {shares} and {below}"
            )
        if not all(isinstance(n, int) for n in sizes) or not all(
            isinstance(x, (int, float)) for x in (*shares, *below)
        ):
            raise UserError(
                f"sizes must be whole numbers, and shares and below numbers, got {sizes}, "
                f"{shares} and {below}"
            )
        return cls(tuple(map(MicroGroup, sizes, shares, below)), forward)

    def __post_init__(self) -> None:
        check_range("forward", self.forward, 0.0, 1.0)

    @property
    def num_demonstrations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The most that a group may have."""
        return sum(part.rows for part in self.parts if part.share == 1.0)

    def turns(self, rows: int) -> tuple[int, ...]:
        """One micro-group after the other.

        Raises:
            UserError: they are of another number of rows.
        """
        sizes = [part.rows for part in self.parts]
        if sum(sizes) != rows:
            raise UserError(
                f"micro-groups of {' + '.join(map(str, sizes))} = {sum(sizes)} rows do not fill a "
                f"group of {rows}: set num_generations to {sum(sizes)}, or other sizes"
            )
        return tuple(turn for turn, size in enumerate(sizes) for _ in range(size))

    def starts(self, group: Group) -> Starts:
        """Those of the rows that have their turn or have had it; the others' is not known yet."""
        self.turns(group.rows)
        if not group.lengths:
            return group.everyone(None)
        index = group.random().randrange(len(group.lengths))
        starts: list[Start | None] = []
        for part in self.parts:
            before = group.rewards[: len(starts)]
            known = len(before) == len(starts) and None not in before
            helped = part.share > 0.0 and known and summed(before) < part.below
            start = self._start(group, index, part.share) if helped else None
            alike = start and replace(start, trained=start.length == group.lengths[index])
            starts += [*[alike] * (part.rows - 1), start]
        return tuple(starts)

    def _start(self, group: Group, index: int, share: float) -> Start:
        """At this share of a demonstration, or at the end of the next blank line."""
        whole = group.lengths[index]
        if share == 1.0:
            return Start(index, whole, 1.0)
        start, room = group.start(index, share), group.start(index, 1.0).length
        # As in the authors' code: of the token that ends a blank line its place counts, from 0.
        ends = group.boundaries[index] if group.boundaries else ()
        end = next((n for n in ends if n - 1 > start.length), None)
        near = whole * (share + self.forward) - 1e-9  # .55 * 100 is a little more than 55
        if end is None or end - 1 >= near or end > room:
            return start
        return Start(index, end, end / whole)


def summed(rewards: Sequence[float | None]) -> float:
    """The sum of those that there are."""
    return math.fsum(r for r in rewards if r is not None and not math.isnan(r))
