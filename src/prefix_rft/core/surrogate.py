"""The surrogates of the streams: what a token contributes, given its ratio and advantage."""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.core.batch import Batch
from prefix_rft.core.method import Method
from prefix_rft.core.stream import Stream
from prefix_rft.core.weights import Scores
from prefix_rft.support.errors import UserError

LOG_RATIO_LIMIT = 20.0
"""Beyond it (a factor of 5e8) a ratio is held: an infinite one would make a clipped token NaN."""


def ratio(batch: Batch, logp_BT: Tensor, mask_BT: Tensor, level: str = "token") -> Tensor:
    """Importance ratio ``pi / pi_old``; 1 outside the mask, and where there is no old policy.

    At level ``sequence`` every token of a row has the geometric mean over its masked tokens.
    """
    old = logp_BT.detach() if batch.old_logp_BT is None else batch.old_logp_BT
    log_ratio = logp_BT.where(mask_BT, 0.0) - old.where(mask_BT, 0.0)
    if level == "sequence":
        n = mask_BT.sum(1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio.sum(1, keepdim=True) / n).where(mask_BT, 0.0)
    return log_ratio.clamp(max=LOG_RATIO_LIMIT).exp()


def surrogate(
    method: Method,
    s: int,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None,
    advantage: Tensor,
    acts_BT: Tensor,
) -> Tensor:
    """``S`` of stream ``s`` at each token, shape (B, T), where it acts; see ``stream.Stream``.

    ``advantage`` is one for each row, shape (B, 1), or for each token.
    """
    stream = method.streams[s]
    if stream.surrogate == "entropy":
        if entropy_BT is None:
            raise UserError(f"stream '{stream.name}' of '{method.name}' needs entropies, got none")
        return entropy_BT
    logp = logp_BT.where(acts_BT, 0.0)
    if stream.surrogate == "kl":
        if batch.ref_logp_BT is None:
            raise UserError(f"stream '{stream.name}' of '{method.name}' needs ref_logp_BT")
        log_ratio = batch.ref_logp_BT.where(acts_BT, 0.0) - logp
        # Beyond the limit the exponential goes on as a line, so that it still pulls back.
        held = log_ratio.clamp(max=LOG_RATIO_LIMIT)
        return -(held.exp() * (1.0 + log_ratio - held) - log_ratio - 1.0)
    if stream.surrogate == "divergence":
        assert batch.divergence_SBT is not None  # noqa: S101  (it was heard)
        value = -single(batch.divergence_SBT[s]).where(acts_BT, 0.0)
        return value if batch.weight_BT is None else value * batch.weight_BT.where(acts_BT, 0.0)
    if stream.surrogate == "logp":
        return advantage * logp
    if stream.surrogate == "likelihood":
        likelihood = logp.exp()
        return advantage * (likelihood if stream.shape is None else stream.shape.of(likelihood))
    rho = ratio(batch, logp, acts_BT, stream.level)
    if stream.surrogate == "cispo":
        held = rho.detach().clamp(1.0 - method.clip.low, 1.0 + method.clip.upper)
        value = held * advantage * logp
        return value if batch.weight_BT is None else value * batch.weight_BT.where(acts_BT, 0.0)
    bounded = rho if method.clip.delta is None else rho.clamp(max=method.clip.delta)
    value = bounded * advantage
    if stream.surrogate == "clip":
        value = torch.minimum(
            value, rho.clamp(1.0 - method.clip.low, 1.0 + method.clip.upper) * advantage
        )
    return value if batch.weight_BT is None else value * batch.weight_BT.where(acts_BT, 0.0)


@torch.no_grad()
def weight(
    method: Method,
    stream: Stream,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None,
    advantage_B1: Tensor,
    acts_BT: Tensor,
) -> Tensor:
    """The stream's weight of every token, shape (B, T), without gradient."""
    assert stream.weight is not None  # noqa: S101
    ref, old = batch.ref_logp_BT, batch.old_logp_BT
    heard = method.teacher_of(stream) if stream.teacher else None
    scores = Scores(
        logp_BT.where(acts_BT, 0.0),
        acts_BT,
        None if entropy_BT is None else entropy_BT.where(acts_BT, 0.0),
        None if ref is None else ref.where(acts_BT, 0.0),
        None if heard is None else teacher_gap(batch, heard, logp_BT, acts_BT),
        advantage_B1,
        None if old is None else old.where(acts_BT, 0.0),
    )
    weight = stream.weight.of(scores)
    if weight.shape not in (acts_BT.shape, (len(acts_BT), 1)):
        raise UserError(
            f"weight '{stream.weight.name}' of stream '{stream.name}' must have shape (B, T) or "
            f"(B, 1), got {tuple(weight.shape)}"
        )
    return weight.expand(acts_BT.shape)


@torch.no_grad()
def teacher_gap(batch: Batch, teacher: int, logp_BT: Tensor, mask_BT: Tensor) -> Tensor | None:
    """``log q - log p``, shape (B, T), 0 outside the mask and in rows that are not taught.

    Args:
        batch: the rows; None is returned where no teacher was heard.
        teacher: which of the method's teachers.
        logp_BT: the policy's log-probabilities.
        mask_BT: bool, the tokens that matter.
    """
    if batch.teacher_logp_MBT is None or batch.taught_MB is None:
        return None
    told_BT = mask_BT & batch.taught_MB[teacher][:, None]
    told = batch.teacher_logp_MBT[teacher].to(logp_BT.dtype)
    return told.where(told_BT, 0.0) - logp_BT.where(told_BT, 0.0)


@torch.no_grad()
def count_clipped(
    stats: dict[str, tuple[Tensor, Tensor]],
    method: Method,
    stream: Stream,
    batch: Batch,
    logp_BT: Tensor,
    advantage: Tensor,
    acts_BT: Tensor,
) -> None:
    """Add the tokens that the clip acts on to ``clip_ratio/region_mean``: those whose gradient it
    removes, or, for ``cispo``, whose weight it holds."""
    rho = ratio(batch, logp_BT, acts_BT, stream.level)
    clipped = (rho < 1.0 - method.clip.low) & (advantage < 0)
    clipped = (clipped | ((rho > 1.0 + method.clip.upper) & (advantage > 0))) & acts_BT
    if stream.surrogate == "cispo":
        clipped = ((rho < 1.0 - method.clip.low) | (rho > 1.0 + method.clip.upper)) & acts_BT
    name = "clip_ratio/region_mean"
    s, n = stats.get(name, (clipped.new_zeros((), dtype=torch.int64),) * 2)
    stats[name] = (s + clipped.sum(), n + acts_BT.sum())


def single(x_BT: Tensor) -> Tensor:
    """At least single precision: sums over a step need more than eight bits."""
    return x_BT.float() if x_BT.dtype in (torch.bfloat16, torch.float16) else x_BT


def unheard(stream: Stream, batch: Batch) -> bool:
    """Whether the stream's teacher was not asked in this step: then it acts on nothing."""
    said = batch.teacher_logp_MBT if stream.divergence is None else batch.divergence_SBT
    return bool(stream.teacher) and said is None
