"""How much each weight matters, and masks that keep the ones that matter most.

SPEFT, arXiv 2412.13488 (scores and top-k masks); any loss can be the source of the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError, choose

SCORES = ("gradient", "magnitude", "snip", "fisher", "random")
SCOPES = ("global", "local")


def salience(
    score: str, weight: Tensor, gradient: Tensor, squares: Tensor, seed: int = 0
) -> Tensor:
    """The salience of every entry of a weight.

    ``gradient`` is ``|g|``, ``magnitude`` ``|w|``, ``snip`` ``|w g|``, ``fisher`` the sum of
    squared gradients, ``random`` a uniform number.

    Args:
        score: one of ``SCORES``.
        weight: the weight.
        gradient: sum of the gradients looked at, of the weight's shape.
        squares: sum of their squares.
        seed: the seed of ``random``.
    """
    choose("salience score", score, SCORES)
    if score == "gradient":
        return gradient.abs()
    if score == "magnitude":
        return weight.abs()
    if score == "snip":
        return (weight * gradient).abs()
    if score == "fisher":
        return squares
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=rng).to(weight.device)


def keep_most_salient(
    scores: Mapping[str, Tensor], fraction: float, scope: str = "global"
) -> dict[str, Tensor]:
    """Bool masks of the ``fraction`` of entries with the highest scores.

    ``round(fraction * n)`` entries are kept, at least one: of all weights together (``global``) or
    of each (``local``). Ties go to the earlier entry.
    """
    choose("scope of the mask", scope, SCOPES)
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"the fraction of weights to keep must be in (0, 1], got {fraction}")
    if scope == "local":
        return {name: _top(s.flatten(), fraction).view(s.shape) for name, s in scores.items()}
    flat = _top(torch.cat([s.flatten().float() for s in scores.values()]), fraction)
    parts = flat.split([s.numel() for s in scores.values()])
    return {name: m.view(s.shape) for (name, s), m in zip(scores.items(), parts, strict=True)}


def _top(score: Tensor, fraction: float) -> Tensor:
    k = max(1, round(fraction * score.numel()))
    least = torch.topk(score, k, sorted=False).values.min()
    keep = score > least
    keep[(score == least).nonzero()[: k - int(keep.sum()), 0]] = True
    return keep
