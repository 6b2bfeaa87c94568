"""The checkpoints that may be the reference: Random Checkpoint Replay (SSPO, arXiv 2410.05255).

Training goes in stages of ``every`` updates. A checkpoint is taken before the first and behind each
of them; at the beginning of a stage one of the pool is drawn, generates the samples of that stage
and is their reference. Everything here is a function of the stage and the seed, so that a run that
goes on knows its pool and its draws without having stored them.

That the oldest checkpoint goes when the pool is full is ours: the paper's text as we know it says
how many there are (7), not which.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

SOURCES: dict[str, Callable[[list[int], int], list[int]]] = {
    "uniform": lambda saved, size: saved[-size:],
    "first": lambda saved, size: saved[:1],
    "latest": lambda saved, size: saved[-1:],
}
"""Which of the checkpoints taken so far, by their steps, may be drawn; ``uniform`` is SSPO's."""


def stream(seed: int, what: str, number: int) -> torch.Generator:
    """A random source that depends on ``(seed, what, number)`` and on nothing else, on the CPU.

    Args:
        seed: the run's seed.
        what: is drawn from it, in a word.
        number: the stage, step or epoch in which it is drawn.
    """
    bits = random.Random(f"diffusion:{seed}:{what}:{number}").getrandbits(63)
    return torch.Generator().manual_seed(bits)


@dataclass(frozen=True)
class Pool:
    """Which checkpoints a stage may draw from, by the number of updates before each.

    Attributes:
        every: the updates of a stage.
        size: the most checkpoints that the pool holds.
        source: a name in ``SOURCES``.
    """

    every: int = 30
    size: int = 7
    source: str = "uniform"

    def members(self, stage: int) -> list[int]:
        """The steps of the checkpoints that stage ``stage`` (from 0) draws from, oldest first."""
        return SOURCES[self.source]([k * self.every for k in range(stage + 1)], self.size)

    def draw(self, stage: int, seed: int) -> int:
        """The step of the checkpoint that is the reference of a stage, uniform over its members."""
        members = self.members(stage)
        choice = torch.randint(len(members), (), generator=stream(seed, "reference", stage))
        return members[int(choice)]

    def kept(self, step: int) -> set[int]:
        """The steps of the checkpoints that a run needs at ``step``, or behind one step back.

        One step back is where it goes on should the newest checkpoint turn out to be damaged.
        """
        stage = step // self.every
        before = (step - 1) // self.every if step else 0
        return {step, before * self.every, *self.members(stage), *self.members(before)}
