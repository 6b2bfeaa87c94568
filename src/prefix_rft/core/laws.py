"""Laws of :mod:`~prefix_rft.core.control`: how the share of a demonstration follows success."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.core.control import Law, Visit
from prefix_rft.core.planner import Group, Record, Start
from prefix_rft.support.errors import UserError, check_range


def solved(group: Group, rewards: Sequence[float]) -> float:
    """The share of rows that are solved."""
    return sum(r > group.solved_above for r in rewards) / len(rewards)


@dataclass(frozen=True)
class Integral(Law):
    """The share moves by what the success rate lacks: ``u + gain (target - rate)``, held in bounds.

    Around a success rate of a half a logistic success curve of steepness k has slope k/4, so that
    it settles if ``gain`` is below 8/k. The bound is on the share itself: where the controller
    lowers its largest share, nothing winds up behind it.

    A plain visit that reaches the target takes the share to 0; another one teaches nothing.

    With a ``floor`` below 0 an example that is too easy is handicapped: its rows start from that
    share, its sign left out, of an own rollout that went wrong, once there is one.

    Attributes:
        gain: the largest step is ``gain`` times the larger of ``target`` and what is left to 1.
        target: the success rate to hold.
        first: the share of the first examples; later ones begin at the average share.
        dead: no step while the rate is so near the target.
        average: how much of the average success rate of an example is that of earlier visits.
        every: optimizer steps between two moves of an example.
        jump: where every row is solved the share is halved.
        ema: the decay of the average share at which new examples begin.
        floor: the smallest share.
    """

    gain: float = 0.2
    target: float = 0.5
    first: float = 0.9
    dead: float = 0.0
    average: float = 0.0
    every: int = 1
    jump: bool = False
    ema: float = 0.9
    floor: float = 0.0

    @property
    def finds_sources(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Own wrong rollouts."""
        return self.floor < 0.0

    def __post_init__(self) -> None:
        check_range("gain", self.gain, 0.0)
        check_range("floor", self.floor, -1.0, 0.0)
        check_range("every", self.every, 1)
        for name in ("target", "first", "dead", "average", "ema"):
            check_range(name, getattr(self, name), 0.0, 1.0)

    def _share(self, group: Group) -> float:
        return group.own.get("u", group.shared.get("u", self.first))

    def start(self, group: Group, index: int, rng: random.Random) -> Start | None:
        """At the example's share."""
        share = self._share(group)
        if share < 0.0:
            wrong = group.newest(solved=False)
            return None if wrong is None else group.start(wrong, -share)
        return None if index < 0 else group.start(index, share)

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """Move the share, and the average towards it."""
        if not visit.rewards:
            return group.own, group.shared
        now = solved(group, visit.rewards)
        before = group.own.get("rate", now)
        rate = self.average * before + (1.0 - self.average) * now
        share = visit.share
        record = {"u": share, "rate": rate, "moved": group.own.get("moved", -math.inf)}
        if visit.plain:
            if now < self.target:
                return group.own, group.shared
            own = group.own.get("u", 0.0)
            record = {**record, "u": min(own, 0.0), "rate": before}
        elif group.step - record["moved"] >= self.every and abs(self.target - rate) > self.dead:
            if self.jump and now == 1.0:
                share /= 2.0
            else:
                share += self.gain * (self.target - rate)
            record |= {"u": min(max(share, self.floor), visit.cap), "moved": float(group.step)}
        mean = self.ema * group.shared.get("u", self.first) + (1.0 - self.ema) * record["u"]
        # What is kept is JSON, which has no infinity.
        return {k: v for k, v in record.items() if v != -math.inf}, {"u": mean}


@dataclass(frozen=True)
class Bisection(Law):
    """Each example keeps an interval of shares; a group's rows start from one drawn from it.

    A group whose mean reward is below ``threshold`` raises the lower end to its share; another one
    lowers the upper end to it and the lower end to 0. A closed interval that fails opens up to 1.
    A new example starts from a moving average of all intervals. (AdaBack, arXiv 2506.18110.)

    Attributes:
        threshold: the mean reward below which more is revealed next time.
        ema: the decay of the average interval.
    """

    threshold: float = 0.5
    ema: float = 0.99

    def __post_init__(self) -> None:
        check_range("ema", self.ema, 0.0, 1.0)

    def bounds(self, group: Group) -> tuple[float, float]:
        """The example's interval, or the average one."""
        record = group.own or group.shared
        return record.get("low", 0.0), record.get("high", 1.0)

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At a share drawn from the interval."""
        low, high = self.bounds(group)
        return group.start(index, low + (high - low) * rng.random())

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """Move the interval, and the average towards it."""
        if not visit.rewards:
            return group.own, group.shared
        fails = sum(visit.rewards) / len(visit.rewards) < self.threshold
        low, high = self.bounds(group)
        helps = any(group.start(i, high).length for i in range(len(group.lengths)))
        if fails and visit.start is None and helps:
            return group.own, group.shared  # that it fails without a prefix says nothing new
        share = 0.0 if visit.start is None else visit.share
        if not fails:
            low, high = 0.0, share
        else:
            # An interval that has closed and fails opens again: the rule alone would be stuck.
            low, high = share, high if helps and high > share else 1.0
        shared = {
            "low": self.ema * group.shared.get("low", 0.0) + (1.0 - self.ema) * low,
            "high": self.ema * group.shared.get("high", 1.0) + (1.0 - self.ema) * high,
        }
        return {"low": low, "high": high}, shared


@dataclass(frozen=True)
class Ladder(Law):
    """The share grows by ``step`` each time no guided row is solved, and never falls.

    Attributes:
        first: the share at an example's first visit.
        step: the amount by which it grows.
    """

    first: float = 0.1
    step: float = 0.1

    def __post_init__(self) -> None:
        for name in ("first", "step"):
            check_range(name, getattr(self, name), 0.0, 1.0)

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """At the example's share."""
        return group.start(index, group.own.get("ratio", self.first))

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """Climb a step where no row was solved, or the share is too short for a single token."""
        share = group.own.get("ratio", self.first)
        if visit.plain:
            return group.own, group.shared
        failed = visit.rewards and max(visit.rewards) <= group.solved_above
        if visit.start is None or failed:
            share = min(1.0, share + self.step)
        return {"ratio": share}, group.shared


STEEPNESS = (4.5, 6.0, 8.0, 11.0, 15.0, 20.0, 27.0, 37.0, 50.0)
"""Between those of four problems in SEELE, arXiv 2509.06923 (4.46 to 50)."""
MIDPOINTS = tuple(i / 20 for i in range(21))
PAIRS = 8
"""Visits that a curve is fitted to."""


@dataclass(frozen=True)
class Logistic(Law):
    """A logistic curve of success over share is fitted to an example's last visits.

    The next share is where the curve has the target. SEELE fits it within a group, in
    four rounds of eight rows; here each visit is a round, and the guess rate is 0.

    Attributes:
        target: the success rate to hold.
        first: the share of the first visit of the first examples.
        ema: the decay of the average share at which new examples begin.
    """

    target: float = 0.5
    first: float = 0.9
    ema: float = 0.9

    def __post_init__(self) -> None:
        for name in ("first", "ema"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        if not 0.0 < self.target < 1.0:
            raise UserError(f"target must be in (0, 1), got {self.target}")

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """Where the fitted curve has the target."""
        share = group.own.get("u", group.shared.get("u", self.first))
        return group.start(index, share)

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """Add the visit to the pairs, and fit the curve."""
        if not visit.rewards:
            return group.own, group.shared
        known = [(group.own[f"u{i}"], group.own[f"p{i}"]) for i in range(PAIRS)
                 if f"u{i}" in group.own]  # fmt: skip
        pairs = [*known, (visit.share, solved(group, visit.rewards))][-PAIRS:]
        steepness, midpoint = self.fit(pairs)
        share = midpoint + math.log(self.target / (1.0 - self.target)) / steepness
        share = min(max(share, 0.0), visit.cap)
        record = {"u": share}
        for i, (u, p) in enumerate(pairs):
            record |= {f"u{i}": u, f"p{i}": p}
        mean = self.ema * group.shared.get("u", self.first) + (1.0 - self.ema) * share
        return record, {"u": mean}

    @staticmethod
    def fit(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Steepness and midpoint of the curve nearest to pairs of share and success rate."""

        def error(curve: tuple[float, float]) -> float:
            k, mid = curve
            return sum((p - 1.0 / (1.0 + math.exp(-k * (u - mid)))) ** 2 for u, p in pairs)

        return min(((k, mid) for k in STEEPNESS for mid in MIDPOINTS), key=error)


@dataclass(frozen=True)
class Replay(Law):
    """Rows start from the example's newest own rollout, once; without a new one, from the prompt.

    Of a right one all but a share is given, of a wrong one a share. The two shares are the same for
    all examples, and follow moving averages of success: where rows succeed too often more is left
    to do, or more of what is wrong is given. (Prefix Sampling, arXiv 2605.05112.)

    Attributes:
        left: the share of a right rollout that is left to do, at first.
        given: the share of a wrong one that is given, at first.
        step: the amount by which either moves; 0 keeps them.
        target: the success rate that is aimed at.
        dead: no move while the average is so near the target.
        average: how much of an average is that of earlier visits.
        rest: optimizer steps between two moves of one of the shares.
    """

    left: float = 0.25
    given: float = 0.25
    step: float = 0.05
    target: float = 0.5
    dead: float = 0.03
    average: float = 0.95
    rest: int = 5
    finds_sources = True
    needs_demonstrations = False

    def __post_init__(self) -> None:
        check_range("rest", self.rest, 0)
        for name in ("left", "given", "step", "target", "dead", "average"):
            check_range(name, getattr(self, name), 0.0, 1.0)

    def start(self, group: Group, index: int, rng: random.Random) -> Start | None:
        """In the newest own rollout, if it has come since the last one was used."""
        newest = group.seen[0] if group.seen else None
        if newest is None or newest.step <= group.own.get("used", -1.0):
            return None
        at = len(group.lengths)
        if newest.solved:
            return group.start(at, 1.0 - group.shared.get("left", self.left))
        return group.start(at, group.shared.get("given", self.given))

    def learn(self, group: Group, visit: Visit) -> tuple[Record, Record]:
        """Note which rollout was used, and move the share of its kind."""
        if visit.start is None or not group.seen:
            return group.own, group.shared
        newest = group.seen[0]
        own = {**group.own, "used": float(newest.step)}
        if not visit.rewards:
            return own, group.shared
        share, rate, moved = (("left", "right/rate", "right/moved") if newest.solved
                              else ("given", "wrong/rate", "wrong/moved"))  # fmt: skip
        first = self.left if newest.solved else self.given
        now = solved(group, visit.rewards)
        mean = self.average * group.shared.get(rate, self.target) + (1.0 - self.average) * now
        shared = {**group.shared, rate: mean}
        rested = group.step - group.shared.get(moved, -math.inf) >= self.rest
        if rested and abs(mean - self.target) > self.dead:
            value = group.shared.get(share, first)
            value += self.step if mean > self.target else -self.step
            shared |= {share: min(max(value, 0.05), 0.95), moved: float(group.step)}
        return own, shared
