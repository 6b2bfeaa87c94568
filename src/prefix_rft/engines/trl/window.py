"""The rows of one optimizer step: joined, and taken apart.

TRL keeps a generation as a list of micro-batches, all padded to the longest row. A window is the
run of micro-batches between two optimizer steps. Which rows of a window share a micro-batch changes
nothing but speed, because the loss does not depend on the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Batch
from prefix_rft.engines.trl.pictures import apart

Rows = dict[str, Any]


def join(micro_batches: Sequence[Rows]) -> Rows:
    """One dict with all rows, taken apart; scalars are those of the first micro-batch.

    Args:
        micro_batches: TRL's.
    """
    parts = [apart(rows) for rows in micro_batches]
    joined: Rows = dict(parts[0])
    for key, value in parts[0].items():
        if torch.is_tensor(value) and value.ndim:
            joined[key] = torch.cat([part[key] for part in parts])
        elif isinstance(value, list):
            joined[key] = [x for part in parts for x in part[key]]
    return joined


def few(rows: Rows, which: Tensor) -> Rows:
    """Some of the rows, which are taken apart, by their places."""
    places = which.tolist()
    return {
        k: v[which]
        if torch.is_tensor(v) and v.ndim
        else [v[i] for i in places]
        if isinstance(v, list)
        else v
        for k, v in rows.items()
    }


def split_at(ids: Tensor, mask: Tensor, completion: int) -> Rows:
    """Rows of prompt and completion, given in one; the completions are the last positions."""
    return {
        "prompt_ids": ids[:, :-completion],
        "prompt_mask": mask[:, :-completion],
        "completion_ids": ids[:, -completion:],
        "completion_mask": mask[:, -completion:],
    }


def teachers_said(rows: Rows) -> tuple[Tensor | None, Tensor | None]:
    """What teachers said of some rows, shape (M, B, T), and which they teach, shape (M, B).

    None stands for what none was asked.
    """
    taught, said = [], []
    while (m := len(taught)) < len(rows) and f"teacher{m}_taught" in rows:
        taught.append(rows[f"teacher{m}_taught"])
        said.append(rows.get(f"teacher{m}_logp"))
    known = next((x for x in said if x is not None), None)
    if known is None:
        return None, torch.stack(taught) if taught else None
    silent_BT = torch.zeros_like(known)
    return torch.stack([silent_BT if x is None else x for x in said]), torch.stack(taught)


def open_prefix(rows: Rows) -> Tensor:
    """Bool, the prefix tokens of these rows that a stream may train, shape (B, T)."""
    shut_B = rows["row_dropped"] | rows["row_context"]
    return rows["prefix_mask"] & ~shut_B[:, None]


def to_batch(rows: Rows) -> Batch:
    """The core batch of these rows."""
    prefix = rows["prefix_mask"]
    weight = rows.get("importance_sampling_ratio")
    if weight is not None:
        # Nobody drew a demonstration's tokens, nor a guided row's from this prompt: it is 1 there.
        undrawn = prefix | rows["demo_mask"] | rows["row_guided"][:, None]
        weight = weight.expand(prefix.shape).masked_fill(undrawn, 1.0)
    told_MBT, taught_MB = teachers_said(rows)
    return Batch(
        tokens_BT=rows["completion_ids"],
        response_mask_BT=rows["completion_mask"].bool(),
        prefix_mask_BT=prefix,
        demo_mask_BT=rows["demo_mask"],
        old_logp_BT=rows.get("old_per_token_logps"),
        reward_B=rows["row_reward"],
        group_B=rows["row_group"],
        ref_logp_BT=rows.get("ref_per_token_logps"),
        weight_BT=weight,
        hinted_B=rows["row_hinted"],
        guided_B=rows["row_guided"],
        context_B=rows["row_context"],
        truncated_B=rows["row_truncated"],
        dropped_B=rows["row_dropped"],
        teacher_logp_MBT=told_MBT,
        taught_MB=taught_MB,
    )
