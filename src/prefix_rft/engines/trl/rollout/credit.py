"""From rollouts to what the loss needs: origin, reward, group and advantages of every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefix_rft.core import Method, step_credit
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.metrics import prefix_bounds, start_metrics
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation
from prefix_rft.engines.trl.rollout.scores import known_entropy
from prefix_rft.engines.trl.window import Rows, open_prefix


def credited(
    method: Method,
    generation: Generation,
    moment: RunPoint,
    processes: Processes,
    forward: Forward,
    eos_ids: Sequence[int],
) -> tuple[Rows, dict[str, float]]:
    """The columns that the loss needs beside TRL's, and metrics; groups may span processes.

    Args:
        method: gives each stream its advantages.
        generation: the rows, which stay as they are.
        moment: the point of the run at which they were made.
        processes: the run's processes.
        forward: the forward for log-probs of the reference policy and entropies of prefixes.
        eos_ids: tokens that end a completion.
    """
    rows, plans = generation.sampled.rows, generation.plans
    reward_N = generation.sampled.reward_N
    device = rows["completion_ids"].device

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    own_columns = {
        "group": column([p.group for p in plans]),
        "length": column([len(p.prefix) for p in plans]),
        "hint": column([len(p.hint) for p in plans]),
        "whole": column([int(p.whole) for p in plans]),
        "filler": column([int(p.filler) for p in plans]),
        "guided": column([int(bool(p.guided)) for p in plans]),
        "without": column([int(not x[IDS]) for x in generation.inputs]),
    }
    everyone = dict(
        zip(own_columns, processes.gather(torch.stack([*own_columns.values()], 1)).T, strict=True)
    )
    length_N = everyone["length"]
    demo_N = everyone["whole"].bool() & (length_N > 0)
    hybrid_N = (length_N + everyone["hint"] > 0) & ~demo_N
    size_N = processes.gather(rows["completion_mask"].sum(1))
    parts = everyone["group"], hybrid_N, demo_N, size_N, moment.max_completion_length
    advantage_SN, dropped_N = step_credit(method, reward_N, *parts, everyone["guided"].bool())
    dropped_N |= everyone["filler"].bool()
    own_rows, group = processes.own(len(plans)), own_columns["group"]
    position = torch.arange(rows["completion_ids"].size(1), device=device)
    inside = position < own_columns["length"][:, None]
    whole = own_columns["whole"].bool()[:, None]
    columns: Rows = {
        "demo_mask": inside & whole,
        "prefix_mask": inside & ~whole,
        "row_example": column([p.example for p in plans]),
        "row_place": column([p.row for p in plans]),
        "row_reward": reward_N[own_rows].masked_fill(own_columns["filler"].bool(), torch.nan),
        "row_group": group,
        "row_generation": torch.full_like(group, moment.step),
        "row_advantages": advantage_SN[:, own_rows].T.contiguous(),
        "row_dropped": dropped_N[own_rows],
        "row_imitation": torch.full_like(group, generation.imitation, dtype=torch.bool),
        "row_guided": own_columns["guided"].bool(),
        "row_hinted": own_columns["hint"] > 0,
        "row_context": column([int(p.context) for p in plans]).bool(),
        "row_truncated": _truncated(rows, eos_ids),
    }
    if "ref_per_token_logps" not in rows:  # as TRL's own reference model gives them
        reference = forward.reference_log_probs(rows)
        if reference is not None:
            columns["ref_per_token_logps"] = reference
    if method.selection is not None and method.selection.source == "rollout":
        entropy = known_entropy(rows, open_prefix(columns), processes)
        if entropy is None:
            entropy = forward.prefix_entropy({**rows, **columns})
        columns["prefix_entropy"] = entropy
    metrics = _dropped_and_missing(method, moment, dropped_N, everyone["without"])
    return columns, metrics | start_metrics(method, length_N + everyone["hint"], hybrid_N, demo_N)


def _truncated(rows: Rows, eos_ids: Sequence[int]) -> Tensor:
    """Bool, the rows that do not end with one of these tokens, shape (B,)."""
    ids = rows["completion_ids"]
    last = rows["completion_mask"].sum(1).clamp(min=1) - 1
    end = ids.gather(1, last[:, None])[:, 0]
    return ~torch.isin(end, torch.tensor(eos_ids, device=ids.device))


def _dropped_and_missing(
    method: Method, moment: RunPoint, dropped_N: Tensor, without_N: Tensor
) -> dict[str, float]:
    metrics = {"groups/dropped": dropped_N.float().mean().item()}
    if method.needs_demonstrations:
        metrics["demonstrations/missing"] = without_N.float().mean().item()
    if method.branches and method.rows.prefix is not None:
        metrics |= prefix_bounds(method.rows.prefix, [moment.step], moment.total_steps)
    return metrics
