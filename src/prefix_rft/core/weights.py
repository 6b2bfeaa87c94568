"""Detached weights of tokens and rows, and shapes of a likelihood: what sets the hybrids apart.

A weight is a function of what a forward says about the tokens; nothing it returns carries a
gradient. A shape is a function of the likelihood, through which the gradient goes.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core.select import keep_fraction
from prefix_rft.support.errors import UserError, choose


@dataclass(frozen=True)
class Scores:
    """What a weight may look at, detached.

    Attributes:
        logp_BT: log-probabilities of the tokens; 0 outside the mask.
        mask_BT: bool, the tokens on which the stream acts.
        entropy_BT: entropies at the same positions, in nats; 0 outside the mask.
        ref_logp_BT: log-probabilities under the reference policy; 0 outside the mask.
        gap_BT: ``log q - log p``, the teacher's log-probability less the policy's; 0 outside the
            mask and in rows that it does not teach.
        advantage_B1: the advantage of each row in the stream.
        old_logp_BT: log-probabilities under the policy that made the rows; 0 outside the mask, and
            None where the policy has not moved since.
    """

    logp_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor | None = None
    ref_logp_BT: Tensor | None = None
    gap_BT: Tensor | None = None
    advantage_B1: Tensor | None = None
    old_logp_BT: Tensor | None = None

    def row_mean(self, x_BT: Tensor) -> Tensor:
        """Mean over the masked tokens of each row, shape (B, 1); 0 for a row without any."""
        n = self.mask_BT.sum(1, keepdim=True).clamp(min=1)
        return x_BT.where(self.mask_BT, 0.0).sum(1, keepdim=True) / n

    @property
    def entropy(self) -> Tensor:
        """Entropies.

        Raises:
            UserError: the engine gave none.
        """
        if self.entropy_BT is None:
            raise UserError("a weight reads entropies, but got none")
        return self.entropy_BT

    @property
    def gap(self) -> Tensor:
        """``log q - log p`` of every token.

        Raises:
            UserError: there is no teacher.
        """
        if self.gap_BT is None:
            raise UserError("a weight reads a teacher, but got none")
        return self.gap_BT

    @property
    def log_ratio_to_ref(self) -> Tensor:
        """``log pi - log pi_ref`` of every token.

        Raises:
            UserError: there is no reference policy.
        """
        if self.ref_logp_BT is None:
            raise UserError("a weight compares with the reference policy, but ref_logp_BT is None")
        return self.logp_BT - self.ref_logp_BT


@dataclass(frozen=True)
class Weight:
    """A named weight: ``of`` maps scores to shape (B, T), or (B, 1) for a weight of whole rows.

    Attributes:
        name: what it is called in tables.
        of: the weight.
        needs_reference: it reads the reference policy.
        teacher: it reads the stream's teacher.
        ratio: it reads the importance ratio, which is that of the rollouts' temperature.
        signed: it may be negative, and multiplies the advantage before the surrogate: PPO's min is
            then around both. A positive one is the same on either side.
    """

    name: str
    of: Callable[[Scores], Tensor]
    needs_reference: bool = False
    teacher: bool = False
    ratio: bool = False
    signed: bool = False

    @property
    def relative(self) -> bool:
        """Whether it compares log-probs of the rollouts' temperature, and reads nothing else."""
        return self.teacher or self.ratio


@dataclass(frozen=True)
class Shape:
    """A named function of the likelihood or the ratio; the gradient goes through it."""

    name: str
    of: Callable[[Tensor], Tensor]


def probability() -> Weight:
    """``p``, the token's own probability (DFT, arXiv 2508.05629)."""
    return Weight("p", lambda s: s.logp_BT.exp())


def truncated(at: float) -> Weight:
    """``min(p / at, 1)``: 1 where the policy finds the token likely (TrSFT, arXiv 2512.17636)."""
    if at <= 0.0:
        raise UserError(f"the probability below which a token weighs less must be positive: {at}")
    return Weight(f"min(p/{at:g}, 1)", lambda s: (s.logp_BT.exp() / at).clamp(max=1.0))


def uncertainty() -> Weight:
    """``p (1 - p)``: most at p = 1/2, 0 at both ends (CHORD-phi, arXiv 2508.11408)."""
    return Weight("p(1-p)", lambda s: s.logp_BT.exp() * -torch.expm1(s.logp_BT))


def exp_entropy(scale: float, sign: float, per_token: bool = False) -> Weight:
    """``scale exp(sign H)``, H the row's mean entropy or the token's (SRFT, arXiv 2506.19767).

    Args:
        scale: the paper's 0.5 on demonstrations and 0.1 on correct rollouts.
        sign: -1 on demonstrations, +1 on rollouts.
        per_token: the token's own entropy; the paper does not say which.
    """

    def of(s: Scores) -> Tensor:
        entropy = s.entropy if per_token else s.row_mean(s.entropy)
        return scale * (sign * entropy).exp()

    level = "token" if per_token else "row"
    return Weight(f"{scale:g} exp({'-' if sign < 0 else ''}H), H of the {level}", of)


def sequence_importance(temperature: float = 1.0, cap: float = 16.0) -> Weight:
    """``min(exp(temperature mean_t(log pi - log pi_ref)), cap)``, one for each row.

    iw-SFT, arXiv 2507.12856, as the authors' code has it: an exponentiated mean, not the ratio of
    the whole sequences.
    """

    def of(s: Scores) -> Tensor:
        mean = temperature * s.row_mean(s.log_ratio_to_ref)
        return mean.exp().clamp(max=cap)  # an overflow is infinite, and then the cap

    return Weight(f"min(exp({temperature:g} mean log pi/pi_ref), {cap:g})", of, True)


DIVERGENCES = ("total_variation", "pearson", "squared_hellinger")


def f_divergence(divergence: str, beta: float, floor: float = 0.0, cap: float = 16.0) -> Weight:
    """``beta phi'(x)`` with ``x = beta (log pi - log pi_ref)``, held within [floor, cap].

    A derived form without its value term (V = 0), not the paper's (of arXiv 2507.00018 no formula
    could be verified); with a value that is free for each prompt every divergence is plain SFT.
    ``phi' = 1`` (total variation: plain SFT), ``1 - x/2`` (Pearson; it turns negative for x > 2,
    which the floor prevents), ``1/(1+x)^2`` (squared Hellinger; it has a pole at x = -1, before
    which the cap holds it).
    """
    choose("divergence", divergence, DIVERGENCES)

    def of(s: Scores) -> Tensor:
        x = beta * s.log_ratio_to_ref
        if divergence == "total_variation":
            slope = torch.ones_like(x)
        elif divergence == "pearson":
            slope = 1.0 - x / 2.0
        else:
            # Beyond the pole the form means nothing: the token is as far off as it can be.
            slope = torch.where(x > -1.0, (1.0 + x).clamp(min=1e-6) ** -2, torch.inf)
        return (beta * slope).clamp(floor, cap)

    return Weight(f"{beta:g} phi'({divergence})", of, True)


def top_entropy(fraction: float) -> Weight:
    """1 on the ``fraction`` of each row's tokens with the highest entropy, else 0."""
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the fraction to keep must be in [0, 1], got {fraction}")

    def of(s: Scores) -> Tensor:
        return keep_fraction(s.entropy, s.mask_BT, fraction, per_row=True).to(s.logp_BT.dtype)

    return Weight(f"top {fraction:.0%} entropy of the row", of)


def saturating(gamma: float) -> Shape:
    """``x / (x + gamma)`` (LUFFY's policy shaping, arXiv 2504.14945)."""
    if gamma <= 0:
        raise UserError(f"gamma must be positive, got {gamma}")
    return Shape(f"x/(x+{gamma:g})", lambda x: x / (x + gamma))


def gap(limit: float | None = None) -> Weight:
    """``D = log q - log p``, the reverse KL of the sampled token as an advantage (distillation).

    Its expected gradient is that of ``KL(policy || teacher)``; backpropagated it would be 0.

    Args:
        limit: D is held within plus and minus this; None does not hold it.
    """
    if limit is not None and limit <= 0:
        raise UserError(f"the limit of a gap must be positive, got {limit}")
    held = (lambda d: d) if limit is None else (lambda d: d.clamp(-limit, limit))
    name = "log q/p" if limit is None else f"log q/p within {limit:g}"
    return Weight(name, lambda s: held(s.gap), teacher=True, signed=True)


def evidence(eps: float) -> Weight:
    """``clip(exp(sign(A) D), 1 - eps, 1 + eps)``, RLSD's credit (arXiv 2604.03128, algorithm 1)."""
    if not 0.0 <= eps < 1.0:
        raise UserError(f"eps_w must be in [0, 1), got {eps}")

    def of(s: Scores) -> Tensor:
        assert s.advantage_B1 is not None  # noqa: S101  (an engine's)
        # Beyond the clip anyway, as eps is below 1; an overflow would be infinite.
        return (s.advantage_B1.sign() * s.gap).clamp(max=1.0).exp().clamp(1.0 - eps, 1.0 + eps)

    return Weight(f"exp(sign(A) log q/p) within 1 +- {eps:g}", of, teacher=True)


def gate(beta: float) -> Weight:
    """``sigmoid(beta D)``, SDAR's gate (arXiv 2605.15155): always positive, it lowers no token."""
    return Weight(f"sigmoid({beta:g} log q/p)", lambda s: torch.sigmoid(beta * s.gap), teacher=True)


def staleness(cap: float) -> Weight:
    """``min(pi / pi_old, cap)``: what SDPO (arXiv 2601.20802) weighs its divergence with.

    Args:
        cap: the most that a token weighs.
    """
    if cap <= 0:
        raise UserError(f"the cap of a ratio must be positive, got {cap}")

    def of(s: Scores) -> Tensor:
        old = s.logp_BT if s.old_logp_BT is None else s.old_logp_BT
        return (s.logp_BT - old).exp().clamp(max=cap)  # an overflow is infinite, and then the cap

    return Weight(f"min(pi/pi_old, {cap:g})", of, ratio=True)
