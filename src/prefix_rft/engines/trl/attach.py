"""From rollouts to what the loss needs: origin, reward, group and advantages of every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prefix_rft.core import step_credit
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.trl.entropy import prefix_entropy
from prefix_rft.engines.trl.rollouts import log_starts
from prefix_rft.engines.trl.rounds import Generation
from prefix_rft.engines.trl.scores import add_reference
from prefix_rft.engines.trl.window import own_rows

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


def attach(trainer: PrefixRFTTrainer, made: Generation) -> None:
    """Add origin, reward, group and advantages to the rows; groups may span processes."""
    rows, plans = made.rows, made.plans
    device = rows["completion_ids"].device
    position = torch.arange(rows["completion_ids"].size(1), device=device)
    known = torch.tensor(
        [
            [p.group, len(p.prefix), int(p.whole), int(p.filler), p.example, p.row, int(not x[IDS])]
            for p, x in zip(plans, made.inputs, strict=True)
        ],
        device=device,
    )
    group, lengths, whole, _, rows["row_example"], rows["row_place"], _ = known.T
    rows["demo_mask"] = (position < lengths[:, None]) & whole.bool()[:, None]
    rows["prefix_mask"] = (position < lengths[:, None]) & ~whole.bool()[:, None]
    group_N, length_N, whole_N, filler_N, *_, without_N = trainer.accelerator.gather(known).T
    demo_N = whole_N.bool() & (length_N > 0)
    hybrid_N = (length_N > 0) & ~demo_N
    size_N = trainer.accelerator.gather(rows["completion_mask"].sum(1))
    advantage_SN, dropped_N = step_credit(
        trainer.method,
        trainer.outcomes,
        group_N,
        hybrid_N,
        demo_N,
        size_N,
        trainer.max_completion_length,
    )
    dropped_N |= filler_N.bool()
    mine = own_rows(trainer.accelerator, len(plans))
    filler = filler_N[mine].bool()
    rows["row_reward"] = trainer.outcomes[mine].masked_fill(filler, torch.nan)
    rows["row_group"] = group
    rows["row_generation"] = torch.full_like(group, trainer.state.global_step)
    rows["row_advantages"] = advantage_SN[:, mine].T.contiguous()
    rows["row_dropped"] = dropped_N[mine]
    rows["row_imitation"] = torch.full_like(group, made.imitation, dtype=torch.bool)
    last = rows["completion_mask"].sum(1).clamp(min=1) - 1
    end = rows["completion_ids"].gather(1, last[:, None])[:, 0]
    rows["row_truncated"] = ~torch.isin(end, torch.tensor(trainer.eos_token_ids, device=device))
    add_reference(trainer, rows)
    selection = trainer.method.selection
    if selection is not None and selection.source == "rollout":
        rows["prefix_entropy"] = prefix_entropy(trainer, rows)
    trainer.metrics["groups/dropped"].append(dropped_N.float().mean().item())
    if trainer.method.needs_demonstrations:
        trainer.metrics["demonstrations/missing"].append(without_N.float().mean().item())
    log_starts(trainer, length_N[hybrid_N], demo_N)
