"""The one objective that all methods share, split so that micro-batches and ranks add up exactly.

``prepare`` looks at a whole optimizer step and fixes everything that carries no gradient:
advantages, selected tokens, and one scale per stream that holds coefficient and normaliser.
``loss`` then is a plain sum over whatever rows it is given, so the sum over micro-batches (and
processes) is the loss of the step, whatever the split. ``token_losses`` takes the same sum apart.

Shape letters: B rows, T tokens, S streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core.batch import Batch
from prefix_rft.core.method import Method
from prefix_rft.core.statistics import statistics
from prefix_rft.core.surrogate import single, surrogate, unheard, weight
from prefix_rft.core.targets import Targets, prepare
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class LossOutput:
    """``loss`` carries the gradient; ``stats`` maps a metric to its detached (sum, count).

    Sums and counts add over micro-batches and processes; ``metrics`` divides them.
    """

    loss: Tensor
    stats: dict[str, tuple[Tensor, Tensor]]

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the metrics that have a count; one that was never observed is left out."""
        return {k: (s / n).item() for k, (s, n) in self.stats.items() if n > 0}


def loss(
    method: Method,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None = None,
    step: int = 0,
    total_steps: int = 1,
    targets: Targets | None = None,
) -> LossOutput:
    """The loss of the rows given, with gradient through ``logp_BT`` (and ``entropy_BT``).

    Without ``targets`` the batch is taken as a whole optimizer step. With the targets of a step
    (sliced to these rows) the result is these rows' share of the step's loss: shares add up.

    Args:
        method: the method, from ``prefix_rft.methods.load``.
        batch: the rows.
        logp_BT: log-probabilities of ``batch.tokens_BT`` under the policy; values outside the
            response may be anything, NaN included.
        entropy_BT: entropies at the same positions, in nats.
        step: optimizer step, for schedules.
        total_steps: steps of the run, the horizon of open schedules.
        targets: the targets of the step that these rows belong to.
    """
    if targets is None:
        targets = prepare(method, batch, entropy_BT, step, total_steps)
    return LossOutput(
        share_of_loss(method, batch, logp_BT, entropy_BT, targets),
        statistics(method, batch, logp_BT, entropy_BT, targets),
    )


def share_of_loss(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> Tensor:
    """What :func:`loss` has as its ``loss``; log-probs of tokens that no stream trains may be
    anything. Arguments are those of :func:`loss`.
    """
    logp_BT, entropy_BT = single(logp_BT), None if entropy_BT is None else single(entropy_BT)
    total = logp_BT.new_zeros(())
    for s in range(len(method.streams)):
        value_BT = _value(method, s, batch, logp_BT, entropy_BT, targets)
        value_B = value_BT.sum(1) / targets.row_count_SB[s]
        total = total - targets.scale_S[s] * value_B.sum()
    return total


def token_losses(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> Tensor:
    """What each token adds to ``loss`` in each stream, shape (S, B, T), with its gradient.

    The sum of all is the loss; the sum of some is the part of a stream, or of tokens of an origin.
    Arguments are those of :func:`loss`.
    """
    logp_BT, entropy_BT = single(logp_BT), None if entropy_BT is None else single(entropy_BT)
    losses = []
    for s in range(len(method.streams)):
        value_BT = _value(method, s, batch, logp_BT, entropy_BT, targets)
        losses.append(-targets.scale_S[s] * value_BT / targets.row_count_SB[s][:, None])
    return torch.stack(losses)


def _value(
    method: Method,
    s: int,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None,
    targets: Targets,
) -> Tensor:
    """Stream ``s`` at each token before its scale, 0 where it does not act; shape (B, T)."""
    # Padding and tokens without advantage never reach an exp: they leave before it, not after.
    stream, acts_BT = method.streams[s], targets.acts_SBT[s]
    if unheard(stream, batch):
        if bool(acts_BT.any()):
            raise UserError(
                f"stream '{stream.name}' of '{method.name}' reads its teacher, but the batch has "
                "nothing of what it said"
            )
        return torch.zeros_like(logp_BT)
    advantage = targets.advantage_SB[s].to(logp_BT.dtype)[:, None]
    factor: Tensor | float = 1.0
    if stream.weight is not None:
        factor = weight(method, stream, batch, logp_BT, entropy_BT, advantage, acts_BT)
        if stream.weight.signed:  # so that PPO's min is around both
            advantage, factor = advantage * factor, 1.0
    value_BT = surrogate(method, s, batch, logp_BT, entropy_BT, advantage, acts_BT)
    return (value_BT * factor).where(acts_BT, 0.0)
