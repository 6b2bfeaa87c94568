"""Advantages that a method's contrast gives, from log-probs of whole groups at the update."""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.core import Method, with_sequence
from prefix_rft.core.contrast import Sequences
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.window import Rows


def contrasted(
    method: Method, rows: Rows, state: MethodState, forward: Forward, processes: Processes
) -> tuple[Tensor, dict[str, float]]:
    """Advantages (S, B) of the rows of an optimizer step, those of the contrast included.

    Args:
        method: the method whose contrast it is; without one the advantages are as they were.
        rows: the rows of the step on this process, in whole groups over all of them.
        state: what is known of each example; what the contrast remembers is added.
        forward: the forward for log-probs under the present policy.
        processes: the run's processes.

    Returns:
        The advantages, and metrics.
    """
    advantage_SB = rows["row_advantages"].T
    if method.contrast is None:
        return advantage_SB, {}
    mask = rows["completion_mask"].bool()
    sums = [forward.log_probs(rows).double().sum(1), mask.sum(1).double()]
    ref = rows.get("ref_per_token_logps")
    if ref is not None:
        sums.append(ref.double().where(mask, 0.0).sum(1))
    logp_N, length_N, *ref_N = processes.gather(torch.stack(sums, 1)).T
    ids = [rows["row_group"], rows["row_example"], rows["demo_mask"].any(1).long()]
    group_N, example_N, demo_N = processes.gather(torch.stack(ids, 1)).T
    sequences = Sequences(
        logp_N, length_N, group_N, demo_N.bool(), example_N, ref_N[0] if ref_N else None
    )
    advantage_N, updates = method.contrast(sequences, state.examples)
    state.remember(updates)
    own_rows = processes.own(len(mask))
    metrics = {"memory/examples": float(len(state.examples))}
    return with_sequence(method, advantage_SB, advantage_N[own_rows]), metrics
