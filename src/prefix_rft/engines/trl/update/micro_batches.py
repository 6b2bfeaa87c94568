"""Which rows of an optimizer step go through forward and backward, and which of them together.

A row on which no term of the loss acts has no gradient and is left out. Those of a group in which
all are right, or all are wrong, are such rows: late in training they are most.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from prefix_rft.core import Targets
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.window import Rows


def acting(targets: Targets) -> Tensor:
    """Bool (B, T), the tokens on which a term of the loss acts whose scale is not 0."""
    scales = torch.tensor(targets.scale_S, device=targets.acts_SBT.device)
    return (targets.acts_SBT & (scales != 0)[:, None, None]).any(0)


def planned(
    rows: Rows, trained_B: Tensor, micro_batches: int, packed: bool, processes: Processes
) -> list[Tensor | None]:
    """The rows of each micro-batch, by their places; None for one that is not run.

    All processes run the same ones, the last ones of the step, and the last is always run: a
    gradient of 0 is a gradient, and processes exchange theirs in its backward. One that has no row
    for a micro-batch runs a row of which nothing is trained.

    Args:
        rows: the rows of the step on this process.
        trained_B: bool, the rows that have a gradient.
        micro_batches: the micro-batches of the step, which hold all rows.
        packed: rows with the same prompt belong together, and not those of like length.
        processes: the run's processes.
    """
    size = -(-len(trained_B) // micro_batches)
    live = trained_B.nonzero()[:, 0]
    key_B = rows["row_group"] if packed else rows["completion_mask"].sum(1)
    live = live[key_B[live].argsort(stable=True)]
    count = processes.gather(torch.tensor([len(live)], device=live.device)).max()
    run = max(1, -(-int(count) // size))
    bounds = [len(live) * i // run for i in range(run + 1)]
    idle = (~trained_B).nonzero()[:1, 0]  # there is one where a process has nothing to run
    run_parts = [live[a:b] if a < b else idle for a, b in pairwise(bounds)]
    return [*[None] * (micro_batches - run), *run_parts]
