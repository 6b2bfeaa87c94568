"""Losses of a reward model on pairs: a demonstration against an own sample (arXiv 2405.17888).

Shape letters: B pairs, T tokens of their completions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefix_rft.support.errors import choose

LOSSES = ("logistic", "difference")


def pair_loss(
    chosen_BT: Tensor,
    rejected_BT: Tensor,
    counted_BT: Tensor,
    loss: str = "logistic",
    regulariser: float = 0.0,
) -> Tensor:
    """Raise the reward of demonstrations over that of own samples.

    The reward's step of Algorithm 1 follows ``grad r(demonstration) - grad r(sample)``: that is
    ``difference``, ``-(r+ - r-)``, which has no lower bound, for any larger reward is better. The
    authors' code bounds it: ``logistic``, ``-log sigmoid(r+ - r-)`` (commit 4953e70,
    ``reward_learning_AIHF.py``). Each pair counts once, as the mean over its counted tokens.

    Args:
        chosen_BT: rewards along the demonstrations, of which one token may be all.
        rejected_BT: rewards along the samples.
        counted_BT: bool, the tokens that count; at least one of each pair.
        loss: one of ``LOSSES``.
        regulariser: coefficient of ``(r+ + r-)^2`` beside ``logistic``, which keeps rewards around
            0 (TRL's ``center_rewards_coefficient``), and of ``r+^2 + r-^2`` beside ``difference``,
            which bounds it.

    Returns:
        The mean over the pairs, a scalar.

    Raises:
        UserError: another ``loss``.
    """
    choose("reward_learning.loss", loss, LOSSES)
    margin_BT = chosen_BT - rejected_BT
    if loss == "logistic":
        each_BT = -logsigmoid(margin_BT) + regulariser * (chosen_BT + rejected_BT) ** 2
    else:
        each_BT = -margin_BT + regulariser * (chosen_BT**2 + rejected_BT**2)
    counted = counted_BT.to(each_BT.dtype)
    return ((each_BT * counted).sum(1) / counted.sum(1)).mean()


def held(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Rewards along sequences, each of which keeps the reward of its last token behind its end.

    Args:
        values_BT: rewards at each token.
        mask_BT: the tokens that are there: 1, and 0 behind the end.
    """
    last_B = mask_BT.long().sum(1, keepdim=True) - 1
    return torch.where(mask_BT.bool(), values_BT, values_BT.gather(1, last_B))


def told_apart(
    chosen_ids_BT: Tensor,
    chosen_mask_BT: Tensor,
    rejected_ids_BT: Tensor,
    rejected_mask_BT: Tensor,
) -> Tensor:
    """The tokens at which two sequences can be told apart by what is before: from the first that
    differs to the end of the longer one, as in the authors' code.

    Args:
        chosen_ids_BT: int64, padded on the right.
        chosen_mask_BT: 1 for its tokens.
        rejected_ids_BT: int64, padded on the right.
        rejected_mask_BT: 1 for its tokens.

    Returns:
        bool, shape (B, T); nothing of a pair whose sequences are the same.
    """
    chosen, rejected = chosen_mask_BT.bool(), rejected_mask_BT.bool()
    differs = (chosen_ids_BT != rejected_ids_BT) & chosen & rejected | (chosen != rejected)
    return (differs.cumsum(1) > 0) & (chosen | rejected)
