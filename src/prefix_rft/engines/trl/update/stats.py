"""Means of an optimizer step over all processes, from the sums and counts of each."""

from __future__ import annotations

import math
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


def tails(values: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """By the same names, the least value that 99 % of those of all processes do not exceed.

    Args:
        values: values of this process, of shape (N,), where each process has another N; all have
            the same names.
        processes: the processes that share the step.
    """
    found = {}
    for name, own_N in values.items():
        longest = int(processes.gather(torch.tensor([len(own_N)], device=own_N.device)).max())
        padded = own_N.new_full((longest,), math.nan)
        padded[: len(own_N)] = own_N
        every = processes.gather(padded)
        every = every[~every.isnan()].sort().values
        if len(every):
            found[name] = every[math.ceil(0.99 * len(every)) - 1].item()
    return found
