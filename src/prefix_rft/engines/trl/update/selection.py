"""Which prefix tokens of an optimizer step keep their advantage.

The paper ranks prefix tokens within a mini-batch, under the policy of the update. A micro-batch
sees only its own rows, so the ranking is done once when the optimizer step begins. In the first
update of a generation the policy is the one that the rows were sampled from, whose entropies the
sampler has told; later, and where it has not, they come from a forward without gradient over
prompt and prefix of the hybrid rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefix_rft.core import Method, select_prefix, selection_seed
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.scores import known_entropy
from prefix_rft.engines.trl.window import Rows, join, open_prefix


def selected(
    method: Method,
    generation: Sequence[Rows],
    window: slice,
    moment: RunPoint,
    forward: Forward,
    processes: Processes,
) -> Tensor:
    """Bool, the prefix tokens of a window that keep their advantage, shape (B, T).

    Args:
        method: says how they are selected.
        generation: the micro-batches of a generation on this process.
        window: those of the optimizer step, one of several windows of the same size.
        moment: the point of the run; decides the seed of the random mode.
        forward: the forward for entropies under the present policy.
        processes: the run's processes.
    """
    chosen = method.selection
    rows = join(generation[window])
    mask = open_prefix(rows)
    if chosen is None:
        return mask
    pool = join(generation) if chosen.scope == "step" else rows
    candidates = open_prefix(pool)
    seed = selection_seed(moment.seed, moment.step)
    if chosen.source == "rollout":
        entropy = pool["prefix_entropy"]
    else:
        unmoved = moment.step == int(rows["row_generation"][0])
        entropy = known_entropy(pool, candidates, processes) if unmoved else None
        entropy = forward.prefix_entropy(pool) if entropy is None else entropy
    if chosen.scope == "row":
        return select_prefix(method, mask, entropy, seed)

    keep = torch.zeros_like(candidates)
    keep[candidates] = _over_processes(method, entropy[candidates], seed, processes)
    if chosen.scope == "step":
        index = window.start // (window.stop - window.start)
        keep = keep[index * len(mask) : (index + 1) * len(mask)]
    return keep


def _over_processes(method: Method, local: Tensor, seed: int, processes: Processes) -> Tensor:
    """Rank the entropies of all processes together; the answer for this process's own."""
    counts = processes.gather(torch.tensor([len(local)], device=local.device)).tolist()
    padded = torch.zeros(max(*counts, 1), device=local.device)
    padded[: len(local)] = local
    everyone = processes.gather(padded).view(len(counts), -1)
    valid = torch.arange(everyone.size(1), device=local.device) < torch.tensor(
        counts, device=local.device
    ).unsqueeze(1)
    kept = select_prefix(method, valid.view(1, -1), everyone.view(1, -1), seed)
    return kept.view(valid.shape)[processes.index, : len(local)]
