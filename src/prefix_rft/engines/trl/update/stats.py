"""Sums and counts behind the metrics of an optimizer step, over its micro-batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.engines.trl.processes import Processes


class StepStats:
    """Adds up what ``core.objective.loss`` reports of the micro-batches of an optimizer step."""

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, stats: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add the (sum, count) pairs of a micro-batch."""
        for name, (s, n) in stats.items():
            old = self.pairs.get(name, (0.0, 0.0))
            self.pairs[name] = (old[0] + s.double(), old[1] + n.double())

    def take(self, processes: Processes) -> dict[str, float]:
        """Means over all processes, of what was observed; the sums begin anew."""
        names = sorted(self.pairs)
        table = torch.stack([torch.stack(self.pairs[n]) for n in names])
        self.pairs = {}
        sums = processes.sum(table).tolist()
        return {name: s / n for name, (s, n) in zip(names, sums, strict=True) if n > 0}
