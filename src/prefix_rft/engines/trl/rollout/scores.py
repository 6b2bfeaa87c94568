"""What the sampler said of tokens while it drew them: log-probs and entropies of the policy.

They are the columns ``policy_logp`` and ``policy_entropy`` of a generation's rows, float32 and of
the shape of the completions. Nothing is known, and NaN stands there, of padding, of whole
demonstrations, and of what another backend, another prompt or the reference policy has sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.window import Rows

COLUMNS = ("policy_logp", "policy_entropy")


def score_columns(
    plans: Sequence[RowPlan], scores_2BT: Tensor | None, completion_ids: Tensor
) -> Rows:
    """The two columns of some rows.

    Args:
        plans: the plans of the rows, with the scores of completions that were kept.
        scores_2BT: log-probs and entropies of what was sampled now; None where nothing is known.
        completion_ids: the completions, prefixes included, shape (B, T).
    """
    columns_2BT = torch.full((2, *completion_ids.shape), torch.nan, device=completion_ids.device)
    if scores_2BT is not None:
        width = min(scores_2BT.size(2), completion_ids.size(1))
        columns_2BT[:, :, :width] = scores_2BT[:, :, :width]
    for row, plan in enumerate(plans):
        if plan.guided:  # what the sampler said is of another prompt
            columns_2BT[:, row] = torch.nan
        elif plan.kept_scores is not None:
            kept_2T = torch.tensor(plan.kept_scores)
            columns_2BT[:, row, : kept_2T.size(1)] = kept_2T.to(columns_2BT)
    return dict(zip(COLUMNS, columns_2BT, strict=True))


def scores_of(rows: Rows, i: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What is known of the completion of row ``i``; None where these rows have no scores."""
    if not all(name in rows for name in COLUMNS):
        return None
    mask = rows["completion_mask"][i].bool()
    logp, entropy = (tuple(rows[name][i][mask].tolist()) for name in COLUMNS)
    return logp, entropy


def known_entropy(rows: Rows, wanted_BT: Tensor, processes: Processes) -> Tensor | None:
    """Entropies at sampling, shape (B, T), 0 elsewhere; None unless all processes know theirs.

    Args:
        rows: rows of this process.
        wanted_BT: bool, the tokens whose entropies are wanted.
        processes: the run's processes, all of which call this.
    """
    entropy_BT = rows.get("policy_entropy")
    unknown_BT = wanted_BT if entropy_BT is None else wanted_BT & entropy_BT.isnan()
    if int(processes.sum(unknown_BT.sum())):
        return None
    if entropy_BT is None:
        return torch.zeros(wanted_BT.shape, device=wanted_BT.device)
    return entropy_BT.where(wanted_BT, 0.0)
