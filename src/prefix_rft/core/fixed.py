"""Laws of :mod:`~prefix_rft.core.control` that learn nothing: fixed shares."""

from __future__ import annotations

import random
from dataclasses import dataclass

from prefix_rft.core.control import Law
from prefix_rft.core.planner import Group, Start
from prefix_rft.support.errors import check_range


@dataclass(frozen=True)
class Fixed(Law):
    """The same share for all examples, always.

    Attributes:
        share: where every guided row starts.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        check_range("share", self.share, 0.0, 1.0)

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At the share."""
        return group.start(index, self.share)


@dataclass(frozen=True)
class Cuts(Law):
    """Each example is cut at a few places, drawn once for the run, one of which a visit picks.

    PrefixRL (arXiv 2601.18795): three cuts between 40 and 80 %.

    Attributes:
        cuts: how many.
        low: the smallest share.
        high: the largest share.
    """

    cuts: int = 3
    low: float = 0.4
    high: float = 0.8

    def __post_init__(self) -> None:
        check_range("cuts", self.cuts, 1)
        check_range("low", self.low, 0.0, self.high)
        check_range("high", self.high, self.low, 1.0)

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At one of the cuts."""
        once = random.Random(f"cut:{group.seed}:{group.example}:{index}:{rng.randrange(self.cuts)}")
        return group.start(index, self.low + (self.high - self.low) * once.random())
