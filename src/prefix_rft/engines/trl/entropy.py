"""Entropies of prefix tokens before the loss, and the selection over the whole pool.

The paper ranks prefix tokens within a mini-batch, under the policy of the update. A micro-batch
sees only its own rows, so the ranking is done once when the optimizer step begins, from a forward
without gradient over prompt and prefix of the hybrid rows alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefix_rft.core import select_prefix, selection_seed
from prefix_rft.engines.trl.window import Rows, join

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


@torch.no_grad()
def prefix_entropy(trainer: PrefixRFTTrainer, rows: Rows) -> Tensor:
    """Entropy of the policy at the prefix tokens of these rows, shape (B, T), 0 elsewhere.

    Every process runs the same number of forwards, as sharded models require.
    """
    mask = rows["prefix_mask"]
    entropy = torch.zeros(mask.shape, device=mask.device)
    hybrid = mask.any(1).nonzero()[:, 0]
    # Sorted by length, so that a chunk holds little padding.
    hybrid = hybrid[mask[hybrid].sum(1).argsort(stable=True)]
    size = trainer.args.per_device_train_batch_size
    chunks = list(hybrid.split(size)) if len(hybrid) else []
    wanted = trainer.accelerator.gather(torch.tensor([len(chunks)], device=mask.device)).max()
    idle = torch.zeros(1, dtype=torch.long, device=mask.device)
    for i in range(int(wanted)):
        chunk = chunks[i] if i < len(chunks) else idle
        width = max(1, int(mask[chunk].sum(1).max()))
        prompts = rows["prompt_mask"][chunk]
        left = int(prompts.sum(1).max())
        ids = torch.cat(
            [rows["prompt_ids"][chunk][:, -left:], rows["completion_ids"][chunk][:, :width]], 1
        )
        attention = torch.cat([prompts[:, -left:], rows["completion_mask"][chunk][:, :width]], 1)
        out: Any = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, width, compute_entropy=True
        )
        if i < len(chunks):
            entropy[chunk, :width] = out[1].float()
    return entropy * mask


def select_in_pool(trainer: PrefixRFTTrainer, window: Rows, index: int) -> Tensor:
    """Prefix tokens of the window that keep their advantage, shape (B, T).

    Args:
        trainer: for the model, the processes and the other windows of the generation.
        window: the rows of this optimizer step on this process.
        index: the window's place in the generation.
    """
    method = trainer.method
    seed = selection_seed(trainer.args.seed, trainer.state.global_step)
    chosen = method.selection
    mask = window["prefix_mask"] & ~window["row_dropped"][:, None]
    if chosen is None:
        return mask
    pool = join(trainer._buffered_inputs) if chosen.scope == "step" else window
    candidates = pool["prefix_mask"] & ~pool["row_dropped"][:, None]
    if chosen.source == "rollout":
        entropy = pool["prefix_entropy"]
    else:
        entropy = prefix_entropy(trainer, pool)
    if chosen.scope == "row":
        return select_prefix(method, mask, entropy, seed)

    local = entropy[candidates]
    kept = _select_over_processes(trainer, local, seed)
    keep = torch.zeros_like(candidates)
    keep[candidates] = kept
    if chosen.scope == "step":
        keep = keep[index * len(mask) : (index + 1) * len(mask)]
    return keep


def _select_over_processes(trainer: PrefixRFTTrainer, local: Tensor, seed: int) -> Tensor:
    """Rank the entropies of all processes together; the answer for this process's own."""
    accelerator = trainer.accelerator
    counts = accelerator.gather(torch.tensor([len(local)], device=local.device)).tolist()
    padded = torch.zeros(max(*counts, 1), device=local.device)
    padded[: len(local)] = local
    everyone = accelerator.gather(padded).view(len(counts), -1)
    valid = torch.arange(everyone.size(1), device=local.device) < torch.tensor(
        counts, device=local.device
    ).unsqueeze(1)
    kept = select_prefix(trainer.method, valid.view(1, -1), everyone.view(1, -1), seed)
    return kept.view(valid.shape)[accelerator.process_index, : len(local)]
