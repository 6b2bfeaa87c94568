"""Log-probs of all rows of a step without gradient: for the reference, and for contrasts.

Every process runs the same number of forwards, because every one holds the same number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefix_rft.core import with_sequence
from prefix_rft.core.contrast import Sequences
from prefix_rft.engines.trl.window import Rows, own_rows

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


@torch.no_grad()
def logp_of(trainer: PrefixRFTTrainer, rows: Rows) -> Tensor:
    """Log-probs of the completions under the model's present weights, 0 outside, shape (B, T)."""
    out: Any = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
        torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
        rows["completion_ids"].size(1),
        batch_size=trainer.args.per_device_train_batch_size,
    )
    return out[0].masked_fill(~rows["completion_mask"].bool(), 0.0)


def add_reference(trainer: PrefixRFTTrainer, rows: Rows) -> None:
    """Attach the reference's log-probs, unless TRL's own reference model has done so."""
    if trainer.reference is None or "ref_per_token_logps" in rows:
        return
    with trainer.reference.swapped():
        rows["ref_per_token_logps"] = logp_of(trainer, rows)


def contrasted(trainer: PrefixRFTTrainer, rows: Rows) -> Tensor:
    """Advantages (S, B) of the step's rows, with those that the method's contrast gives."""
    advantage_SB = rows["row_advantages"].T
    contrast = trainer.method.contrast
    if contrast is None:
        return advantage_SB
    mask = rows["completion_mask"].bool()
    sums = [logp_of(trainer, rows).double().sum(1), mask.sum(1).double()]
    ref = rows.get("ref_per_token_logps")
    if ref is not None:
        sums.append(ref.double().where(mask, 0.0).sum(1))
    gather = trainer.accelerator.gather
    logp_N, length_N, *ref_N = gather(torch.stack(sums, 1)).T
    ids_N: Any = gather(
        torch.stack([rows["row_group"], rows["row_example"], rows["demo_mask"].any(1).long()], 1)
    )
    advantage_N, updates = contrast(
        Sequences(
            logp_N,
            length_N,
            ids_N[:, 0],
            ids_N[:, 2].bool(),
            ids_N[:, 1],
            ref_N[0] if ref_N else None,
        ),
        trainer.method_state.examples,
    )
    trainer.method_state.remember(updates)
    trainer.metrics["memory/examples"].append(float(len(trainer.method_state.examples)))
    mine = own_rows(trainer.accelerator, len(mask))
    return with_sequence(trainer.method, advantage_SB, advantage_N[mine])
