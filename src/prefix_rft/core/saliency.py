"""How much each weight matters, and masks that keep the ones that matter most.

SPEFT, arXiv 2412.13488 (scores and top-k masks); any loss can be the source of the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError, choose

SCORES = ("gradient", "magnitude", "snip", "force", "fisher", "random")
"""``taylor`` of the paper, ``(w g)^2``, orders weights as ``snip`` does and is none of its own."""
WITHOUT_GRADIENTS = ("magnitude", "random")
"""Scores for which nothing has to be looked at."""
SCOPES = ("global", "local")


def term(score: str, gradient: Tensor) -> Tensor:
    """What a score adds up over the gradients that are looked at: them, or their squares.

    Args:
        score: one of ``SCORES``; ``fisher`` adds up squares.
        gradient: one gradient of a weight.

    Returns:
        float32, of the gradient's shape.
    """
    g = gradient.detach().float()
    return g**2 if score == "fisher" else g


def salience(score: str, weight: Tensor, total: Tensor | None, seed: int = 0) -> Tensor:
    """The salience of every entry of a weight (arXiv 2412.13488).

    With ``g`` the sum of the gradients: ``gradient`` is ``|g|``, ``magnitude`` ``|w|``, ``snip``
    ``|w g|``, ``force`` ``-w g`` with its sign (what the loss would gain if the weight were 0, to
    first order), ``fisher`` the sum of squared gradients, ``random`` a uniform number.

    Args:
        score: one of ``SCORES``.
        weight: the weight.
        total: sum of :func:`term` over what was looked at, of the weight's shape; None for a score
            ``WITHOUT_GRADIENTS``.
        seed: the seed of ``random``.

    Raises:
        UserError: there is no such score.
    """
    choose("salience score", score, SCORES)
    if score == "magnitude":
        return weight.detach().abs()
    if score == "random":
        rng = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=rng).to(weight.device)
    assert total is not None  # noqa: S101  (see above)
    if score == "fisher":
        return total
    if score == "gradient":
        return total.abs()
    product = weight.detach().float() * total
    return product.abs() if score == "snip" else -product


def keep_most_salient(
    scores: Mapping[str, Tensor],
    fraction: float | None = None,
    scope: str = "global",
    count: int | None = None,
) -> dict[str, Tensor]:
    """Bool masks of the entries with the highest scores.

    Of all weights together (``global``) or of each (``local``): ``round(fraction * n)`` entries of
    the ``n`` that there are, at least one; or ``count`` in all, of which each tensor has the same
    number, the first ones one more where they do not divide. Ties go to the earlier entry.

    Args:
        scores: the score of every entry, by the name of the tensor.
        fraction: the share that is kept, in (0, 1].
        scope: one of ``SCOPES``.
        count: the number that is kept, in place of ``fraction``.

    Raises:
        UserError: a number out of range, or there are fewer entries than ``count``.
    """
    choose("scope of the mask", scope, SCOPES)
    if (fraction is None) == (count is None):
        raise UserError("weights are kept by a fraction or by a count: give one of the two")
    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise UserError(f"the fraction of weights to keep must be in (0, 1], got {fraction}")
    if scope == "local":
        sizes = [s.numel() for s in scores.values()]
        kept = kept_of_each(sizes, fraction, count)
        parts = [_top(s.flatten(), k) for s, k in zip(scores.values(), kept, strict=True)]
    else:
        flat = torch.cat([s.flatten().float() for s in scores.values()])
        (k,) = kept_of_each([flat.numel()], fraction, count)
        parts = _top(flat, k).split([s.numel() for s in scores.values()])
    return {name: m.view(s.shape) for (name, s), m in zip(scores.items(), parts, strict=True)}


def kept_of_each(sizes: Sequence[int], fraction: float | None, count: int | None) -> list[int]:
    """How many entries are kept of each of several parts.

    Args:
        sizes: entries of each part.
        fraction: the share of each that is kept.
        count: the number that is kept of all, in place of ``fraction``.

    Raises:
        UserError: ``count`` is more than there is.
    """
    if count is None:
        assert fraction is not None  # noqa: S101  (see above)
        return [max(1, round(fraction * n)) for n in sizes]
    base, rest = divmod(count, len(sizes))
    kept = [base + (i < rest) for i in range(len(sizes))]
    for k, n in zip(kept, sizes, strict=True):
        if k > n and len(sizes) == 1:
            raise UserError(f"count={count} is more than the {n} weights there are: lower it")
        if k > n:
            raise UserError(
                f"count={count} is {k} of each of {len(sizes)} tensors, and one has only {n}: "
                "lower it"
            )
    return kept


def _top(score: Tensor, k: int) -> Tensor:
    if k == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    least = torch.topk(score, k, sorted=False).values.min()
    keep = score > least
    keep[(score == least).nonzero()[: k - int(keep.sum()), 0]] = True
    return keep
