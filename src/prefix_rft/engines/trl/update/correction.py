"""Tokens that were drawn at other probabilities than those of the policy that is trained.

Our sampler may multiply in other precision or order than the update, so that its log-probs are a
little off. Truncated importance sampling (Ionides, 2008) weighs each token by what the trainer
gives it over what the sampler gave it, up to a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefix_rft.core import Batch


@dataclass(frozen=True)
class Correction:
    """The correction of the rows of a step.

    Attributes:
        sampler_BT: the sampler's log-probs, NaN where it knows nothing.
        most: the largest weight.
    """

    sampler_BT: Tensor
    most: float

    def of(
        self, batch: Batch, logp_BT: Tensor, places: Tensor | slice = slice(None)
    ) -> tuple[Batch, Tensor]:
        """These rows with the weights of their tokens, and which tokens have one other than 1.

        Tokens of prefixes and demonstrations were not drawn: theirs is 1.

        Args:
            batch: some rows of the step, as wide as their tokens.
            logp_BT: the present policy's log-probs; those of the policy that sampled where the
                batch has no others.
            places: the places of the rows in the step.
        """
        sampler_BT = self.sampler_BT[places, : batch.tokens_BT.size(1)]
        theirs_BT = batch.prefix_mask_BT | batch.demo_mask_BT
        drawn_BT = batch.response_mask_BT & ~theirs_BT & ~sampler_BT.isnan()
        trainer_BT = logp_BT.detach() if batch.old_logp_BT is None else batch.old_logp_BT
        off_BT = (trainer_BT - sampler_BT).where(drawn_BT, 0.0)
        return replace(batch, weight_BT=torch.exp(off_BT).clamp(max=self.most)), drawn_BT
