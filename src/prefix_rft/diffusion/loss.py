"""SSPO's loss over a callable that predicts from noise: torch alone, whatever the model is.

One example is a winner from the data and one sample of a reference, of the same condition. Both get
noise at the same time ``t``, and four mean squared errors decide:

    e_w, e_r  of the policy on winner and sample        r_w, r_r  of the reference on the same
    s = flip(r_w - e_w)                                 who denoises the winner better (the anchor)
    L = -log sigmoid(-beta [(e_w - r_w) - s (e_r - r_r)])

With s = 1 the sample counts as the loser, which is Diffusion-DPO (arXiv 2311.12908, eq. 14); with
s = -1 both are pulled up, in one sigmoid. Source: SSPO, arXiv 2410.05255, eqs. 7, 8 and 14 as three
reviews quote them; the direction of s is derived from their words.

**beta** is the coefficient in front of the difference of *mean* squared errors. The papers write
``beta T w(lambda_t)`` in front of sums, and Salesforce's code of Diffusion-DPO has a factor 0.5
more: its 5000 are 2500 here.

Letters of shapes: B rows; after it any axes, (C, H, W) of a picture or (C, F, H, W) of a video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefix_rft.support.errors import UserError, choose

Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""Called with noisy examples (B, ...), their times t_B and a condition; predicts the target."""


def _sign(gain_B: Tensor) -> Tensor:
    return torch.sign(gain_B)


def _indicator(gain_B: Tensor) -> Tensor:
    return (gain_B > 0).to(gain_B.dtype)


FLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": _sign,
    "indicator": _indicator,
    "none": torch.ones_like,
}
"""What s is, given how much better the policy denoises the winner than the reference, r_w - e_w.

``sign`` is +1, -1, and 0 where both are equal, as they are at the first update behind a reference
of the same weights: no evidence pushes the sample nowhere, and the gradient is beta / 2 times that
of e_w. ``indicator`` is 1 above zero and else 0; ``none`` is always 1.
"""


@dataclass(frozen=True)
class Noised:
    """Examples with noise on them, and what is to be predicted.

    Attributes:
        x: the noisy examples (B, ...).
        t_B: their times, as the model is told them.
        condition: anything that ``predict`` takes for B rows; a tensor (B, ...) or None.
        target: the noise, the velocity or the flow, shaped like ``x``.
    """

    x: Tensor
    t_B: Tensor
    condition: Any
    target: Tensor


@dataclass(frozen=True)
class PairErrors:
    """Mean squared errors of one model on winners and on the samples beside them, each (B,)."""

    winner_B: Tensor
    sample_B: Tensor


@dataclass(frozen=True)
class Preference:
    """What :func:`preference_loss` found.

    Attributes:
        loss_B: the loss of each row.
        flip_B: s of each row, a constant.
        winner_gain_B: how much better the policy denoises the winner, r_w - e_w, a constant.
        sample_gain_B: the same of the sample, r_r - e_r, a constant.
    """

    loss_B: Tensor
    flip_B: Tensor
    winner_gain_B: Tensor
    sample_gain_B: Tensor


def squared_error(predict: Predict, noised: Noised) -> Tensor:
    """The mean squared error of each row, over all axes but B: error_B, in float32 or double.

    Differences of errors are near 1e-4 and are multiplied by thousands, so that half precision
    would lose them: predictions are widened before anything is subtracted.

    Raises:
        UserError: what is predicted has another shape than the target.
    """
    predicted = predict(noised.x, noised.t_B, noised.condition)
    if predicted.shape != noised.target.shape:
        raise UserError(
            f"the model predicts {tuple(predicted.shape)} where the target is "
            f"{tuple(noised.target.shape)}: give the recipe a function 'predict' that takes the "
            "right part of it"
        )
    wide = torch.promote_types(predicted.dtype, torch.float32)
    difference = predicted.to(wide) - noised.target.to(wide)
    return difference.square().flatten(1).mean(1)


def preference_loss(
    policy: PairErrors, reference: PairErrors, beta: float, flip: str = "sign"
) -> Preference:
    """SSPO (arXiv 2410.05255, eq. 14); with ``flip="none"`` Diffusion-DPO (arXiv 2311.12908).

    No gradient reaches the reference's errors nor s.

    Args:
        policy: errors of the model that is trained.
        reference: errors of the reference at the same noise and times.
        beta: coefficient in front of the difference of mean squared errors.
        flip: a name in ``FLIPS``.

    Raises:
        UserError: no such flip.
    """
    choose("flip", flip, FLIPS)
    winner_B = policy.winner_B - reference.winner_B.detach()
    sample_B = policy.sample_B - reference.sample_B.detach()
    flip_B = FLIPS[flip](-winner_B.detach())
    inside_B = -beta * (winner_B - flip_B * sample_B)
    return Preference(-logsigmoid(inside_B), flip_B, -winner_B.detach(), -sample_B.detach())
