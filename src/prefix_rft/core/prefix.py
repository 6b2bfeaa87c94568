"""Which rows of a group start from a demonstration, from which one, and with how many token ids.

Prefix-RFT, arXiv 2507.01679 v3, section 3 and A.2: of 8 rollouts one starts from the first
``floor(ratio * |y*|)`` tokens of a demonstration ``y*``, ``ratio ~ U[low_t, 0.95]``, where
``low_t`` decays along a cosine from 0.95 to 0.05. Several demonstrations: one is picked uniformly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.core.schedules import Schedule, constant, cosine
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class PrefixSampler:
    """The law of the prefix ratio: ``Beta(alpha, beta)`` stretched on ``[low(step), high(step)]``.

    ``alpha = beta = 1`` is the uniform law of the paper. ``min_length`` is in tokens.

    Raises:
        ValueError: a bound outside [0, 1], ``low`` above ``high`` at every step, a Beta parameter
            that is not positive, or a negative ``min_length``.
    """

    low: Schedule = cosine(0.95, 0.05)
    high: Schedule = constant(0.95)
    alpha: float = 1.0
    beta: float = 1.0
    min_length: int = 0

    def __post_init__(self) -> None:
        for name, schedule in (("low", self.low), ("high", self.high)):
            smallest, largest = schedule.bounds()
            if not 0.0 <= smallest <= largest <= 1.0:
                raise UserError(
                    f"prefix ratio {name} must stay in [0, 1], got [{smallest}, {largest}]"
                )
        if self.low.bounds()[0] > self.high.bounds()[1]:
            raise UserError("prefix ratio low is above high at every step")
        if self.alpha <= 0 or self.beta <= 0:
            raise UserError(
                f"Beta parameters must be positive, got alpha={self.alpha}, beta={self.beta}"
            )
        if self.min_length < 0:
            raise UserError(f"min_length must be at least 0, got {self.min_length}")

    def interval(self, step: int, total_steps: int) -> tuple[float, float]:
        """``(low, high)`` at ``step``; where the two schedules cross, low is held at high."""
        high = self.high.over(total_steps)(step)
        return min(self.low.over(total_steps)(step), high), high


@dataclass(frozen=True)
class PrefixDraw:
    """One hybrid row's draw: demonstration ``index``, prefix ``length`` in tokens, ``ratio``."""

    index: int
    length: int
    ratio: float


def is_hybrid(row: int, num_hybrid: int) -> bool:
    """Whether the ``row``-th rollout of a group starts from a demonstration: the first ones do."""
    return row < num_hybrid


def prefix_length(
    ratio: float, length: int, min_length: int = 0, max_length: int | None = None
) -> int:
    """``floor(ratio * length)`` tokens, clamped so that at least one token is left to generate.

    Args:
        ratio: share of the demonstration, in [0, 1].
        length: tokens of the demonstration, its EOS included.
        min_length: lower clamp in tokens.
        max_length: the row's completion budget in tokens, of which one is kept for generation.
    """
    # A guard against 0.7 * 10 = 6.999...: the product of two exact inputs must not lose a token.
    wanted = max(math.floor(ratio * length + 1e-9), min_length)
    room = length if max_length is None else min(length, max_length)
    return max(0, min(wanted, room - 1))


def generator(seed: int, step: int, example: int, row: int) -> random.Random:
    """A random source that depends on ``(seed, step, example, row)`` and on nothing else."""
    return random.Random(f"prefix:{seed}:{step}:{example}:{row}")


def draw_prefix(
    sampler: PrefixSampler,
    demonstration_lengths: Sequence[int],
    *,
    seed: int,
    step: int,
    total_steps: int,
    example: int,
    row: int,
    max_length: int | None = None,
) -> PrefixDraw:
    """Draw the demonstration and the prefix length of one hybrid row.

    Args:
        sampler: the law of the ratio.
        demonstration_lengths: tokens of each demonstration of the prompt; at least one.
        seed: the run's seed.
        step: optimizer step at which the group is generated.
        total_steps: steps of the run, the horizon of open schedules.
        example: the example's index in the dataset.
        row: the row's index in its group.
        max_length: completion budget in tokens.

    Raises:
        UserError: there is no demonstration.
    """
    if not demonstration_lengths:
        raise UserError(f"example {example} has no demonstration to draw a prefix from")
    rng = generator(seed, step, example, row)
    index = rng.randrange(len(demonstration_lengths))
    low, high = sampler.interval(step, total_steps)
    ratio = low + (high - low) * rng.betavariate(sampler.alpha, sampler.beta)
    length = prefix_length(ratio, demonstration_lengths[index], sampler.min_length, max_length)
    return PrefixDraw(index, length, ratio)
