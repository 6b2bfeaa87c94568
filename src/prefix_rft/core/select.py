"""Keep a fraction of given positions by entropy: the entropy-based clipping of Prefix-RFT.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError, choose

MODES = ("high", "low", "random")
SCOPES = ("step", "minibatch", "row")


def number_kept(fraction: float, count: int) -> int:
    """``ceil(fraction * count)``: at least one of a non-empty set for any positive fraction."""
    if not count or not fraction:
        return 0
    # A guard against 0.2 * 15 = 3.0000000000000004, which is 3.
    return min(count, max(1, math.ceil(fraction * count - 1e-6)))


def keep_fraction(
    score_BT: Tensor,
    candidate_BT: Tensor,
    fraction: float,
    mode: str = "high",
    per_row: bool = False,
    seed: int = 0,
) -> Tensor:
    """The candidates with the highest (lowest, or random) scores, as a mask.

    Prefix-RFT, arXiv 2507.01679 v3, section 3: only the top-k% highest-entropy demonstration tokens
    keep their advantage, ranked within each mini-batch (A.2, k = 20). Candidates are ranked over
    the whole tensor, or within each row with ``per_row``. Ties go to the earlier row and position.

    Args:
        score_BT: entropies; values at other positions are never read.
        candidate_BT: bool, the positions to choose from.
        fraction: share to keep, in [0, 1]; ``ceil(fraction * n)`` positions are kept.
        mode: ``high``, ``low`` or ``random``.
        per_row: rank each row by itself.
        seed: the seed of the random mode.

    Returns:
        Bool mask, shape (B, T), a subset of the candidates.
    """
    choose("entropy mode", mode, MODES)
    if score_BT.shape != candidate_BT.shape:
        raise UserError(
            f"scores {tuple(score_BT.shape)} and candidates {tuple(candidate_BT.shape)} must agree"
        )
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the fraction to keep must be in [0, 1], got {fraction}")
    if mode == "random":
        rng = torch.Generator().manual_seed(seed)
        score = torch.rand(score_BT.shape, generator=rng).to(score_BT.device)
    else:
        score = score_BT.detach() if mode == "high" else -score_BT.detach()

    keep = torch.zeros_like(candidate_BT)
    rows = range(len(score)) if per_row else [slice(None)]
    for row in rows:
        where = candidate_BT[row].nonzero(as_tuple=True)
        values = score[row][where]
        order = torch.sort(values, descending=True, stable=True).indices
        chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        chosen[order[: number_kept(fraction, len(values))]] = True
        view = keep[row]
        view[where] = chosen
    return keep
