"""Names of the columns that this engine adds to verl's batches, and a micro-batch as a core batch.

Letters as in core: B rows, T tokens, S streams, M teachers.
"""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Batch, Targets

PLAN = "prefix_rft_plan"
"""Of a prompt: where its rollouts start."""

# Of a rollout.
PREFIX = "prefix_rft_prefix_length"
WHOLE = "prefix_rft_whole"
CONTEXT = "prefix_rft_context"
REWARD = "prefix_rft_reward"
ATTEMPT = "prefix_rft_attempt"

# Of a row of a batch, once its group is graded.
GROUP = "prefix_rft_group"
ADVANTAGE = "prefix_rft_advantage"
DROPPED = "prefix_rft_dropped"
TRUNCATED = "prefix_rft_truncated"
KEEP = "prefix_rft_keep"
"""Prefix tokens that keep their advantage, where they are ranked over all rows of a step."""


def asked(teacher: int) -> str:
    """The column with the prompt of one of the method's teachers; one token where it teaches not.

    It is not there where the teacher is not heard in the step.
    """
    return f"prefix_rft_teacher{teacher}_prompt"


def taught(teacher: int) -> str:
    """The column that tells which rows the teacher teaches."""
    return f"prefix_rft_teacher{teacher}_taught"


def said(teacher: int) -> str:
    """The column with log-probs of responses behind the teacher's prompts, once it has spoken."""
    return f"prefix_rft_teacher{teacher}_logp"


# Of a row of a mini-batch, once its update begins: the targets of core.
TARGETS = {
    "scale": "prefix_rft_scale",
    "acts": "prefix_rft_acts",
    "row_count": "prefix_rft_row_count",
    "advantage": "prefix_rft_advantage",
    "keep": "prefix_rft_kept",
}


def padded(x: Tensor) -> Tensor:
    """A column of rows of different lengths as a tensor (B, T), 0 where a row has ended."""
    return x.to_padded_tensor(0) if x.is_nested else x


def to_batch(data: Any) -> Batch:
    """The core batch of the rows of a mini-batch or micro-batch (a TensorDict)."""
    mask = padded(data["response_mask"]).bool()
    position = torch.arange(mask.size(1), device=mask.device)
    start_mask = (position < data[PREFIX][:, None]) & mask
    whole = data[WHOLE].bool()[:, None]
    weight = data.get("rollout_is_weights", None)
    if weight is not None:
        # The sampler never drew a demonstration's tokens: their correction is 1.
        weight = padded(weight).masked_fill(start_mask, 1.0)
    ref = data.get("ref_log_prob", None)
    told_MBT, taught_MB = teachers_said(data)
    return Batch(
        tokens_BT=padded(data["responses"]),
        response_mask_BT=mask,
        prefix_mask_BT=start_mask & ~whole,
        demo_mask_BT=start_mask & whole,
        old_logp_BT=padded(data["old_log_probs"]),
        reward_B=data[REWARD],
        group_B=data[GROUP],
        ref_logp_BT=None if ref is None else padded(ref),
        weight_BT=weight,
        context_B=data[CONTEXT].bool(),
        truncated_B=data[TRUNCATED].bool(),
        dropped_B=data[DROPPED].bool(),
        teacher_logp_MBT=told_MBT,
        taught_MB=taught_MB,
    )


def teachers_said(data: Any) -> tuple[Tensor | None, Tensor | None]:
    """What teachers said of the rows, shape (M, B, T), and which they teach, shape (M, B).

    Args:
        data: the rows; None is returned for what no teacher was asked.
    """
    known = set(data.keys())
    teachers = list(takewhile(lambda m: taught(m) in known, count()))
    if not teachers:
        return None, None
    taught_MB = torch.stack([data[taught(m)].bool() for m in teachers])
    spoken = {m: padded(data[said(m)]) for m in teachers if said(m) in known}
    if not spoken:
        return None, taught_MB
    silent_BT = torch.zeros_like(next(iter(spoken.values())))
    return torch.stack([spoken.get(m, silent_BT) for m in teachers]), taught_MB


def put_targets(data: Any, targets: Targets) -> None:
    """Add the targets to the rows, so that they go with them into micro-batches."""
    rows = len(data)
    scale_S = torch.tensor(targets.scale_S, dtype=torch.float64)
    data[TARGETS["scale"]] = scale_S.expand(rows, -1).clone()
    data[TARGETS["acts"]] = targets.acts_SBT.transpose(0, 1).contiguous()
    data[TARGETS["row_count"]] = targets.row_count_SB.T.contiguous()
    data[TARGETS["advantage"]] = targets.advantage_SB.T.contiguous()
    data[TARGETS["keep"]] = targets.keep_BT


def get_targets(data: Any, width: int) -> Targets:
    """The targets of the rows of a micro-batch, for its first ``width`` positions."""
    return Targets(
        tuple(data[TARGETS["scale"]][0].tolist()),
        data[TARGETS["acts"]].transpose(0, 1)[:, :, :width],
        data[TARGETS["row_count"]].T,
        data[TARGETS["advantage"]].T,
        data[TARGETS["keep"]][:, :width],
    )
