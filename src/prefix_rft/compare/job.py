"""One run of a comparison: which arm, seed and value, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.compare.arm import Arm

BASE = "base"


def written(value: Any) -> str:
    """A swept value in names and tables."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Job:
    """One run: an arm with one value of what it sweeps, at one seed; or the base, untrained.

    Attributes:
        arm: None for the base.
        seed: the seed of its training.
        value: the value of the swept key; None where nothing is swept.
        folder: the run's folder.
        collects: it samples what runs of the arm at its seed train on, and trains nothing.
    """

    arm: Arm | None
    seed: int
    value: Any
    folder: Path
    collects: bool = False

    @property
    def name(self) -> str:
        """For people."""
        if self.arm is None:
            return BASE
        if self.collects:
            return f"{self.arm.name} collecting, seed {self.seed}"
        key = next(iter(self.arm.sweep), None)
        swept = f" {key}={written(self.value)}" if key else ""
        return f"{self.arm.name}{swept}, seed {self.seed}"
