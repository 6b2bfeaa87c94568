"""Means of an optimizer step over all processes, from the sums and counts of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prefix_rft.engines.trl.processes import Processes


def means(stats: Mapping[str, tuple[Tensor, Tensor]], processes: Processes) -> dict[str, float]:
    """Means of what was observed.

    Args:
        stats: (sum, count) of each metric on this process, see ``core.statistics``.
        processes: the processes that share the step.
    """
    names = sorted(stats)
    table = torch.stack([torch.stack([x.double() for x in stats[n]]) for n in names])
    sums = processes.sum(table).tolist()
    return {name: s / n for name, (s, n) in zip(names, sums, strict=True) if n > 0}
