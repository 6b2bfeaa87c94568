"""A random step of any method, with its targets and with log-probs and entropies as leaves."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from batches import gradients
from test_formulas import batch_of, targets_of
from torch import Tensor

from prefix_rft import core
from prefix_rft.core import Batch, LossOutput, Method, Targets
from prefix_rft.methods import BUILT_IN, load
from second.objective import Step
from second.objective.random_steps import make

GROUPED = ("group", "sampled_group", "policy_group", "hybrid_group", "batch")
CONTRASTS = [n for n in BUILT_IN if load(n).contrast is not None]


def loss(
    method: Method, batch: Batch, logp: Tensor, entropy: Tensor | None = None, **more: Any
) -> LossOutput:
    """The package's; a divergence, where the method has one, is a line in the log-prob."""
    if method.divergences:
        line = 1.0 - 0.5 * logp.to(torch.promote_types(logp.dtype, torch.float32))
        batch = replace(batch, divergence_SBT=torch.stack([line] * len(method.streams)))
    return core.loss(method, batch, logp, entropy, **more)


@dataclass
class Case:
    """A step with log-probs and entropies as leaves."""

    method: Method
    step: Step
    batch: Batch
    logp: Tensor
    entropy: Tensor
    targets: Targets

    def run(self, targets: Targets | None = None) -> list[Tensor]:
        """Loss, and its gradients with respect to log-probs and entropies."""
        value = loss(
            self.method, self.batch, self.logp, self.entropy, targets=targets or self.targets
        ).loss
        return [value.detach(), *gradients(value, self.logp, self.entropy)]


def case(name: str | Method, layout: str | None = None, seed: int = 0) -> Case:
    method = load(name) if isinstance(name, str) else name
    if layout is None:
        layout = "contrast" if method.contrast is not None else "everything"
    step = make(layout, seed)
    batch = batch_of(step, method)
    logp, entropy = (x.detach().clone() for x in (step.logp, step.entropy))
    targets = targets_of(method, step, batch, entropy)
    return Case(method, step, batch, logp.requires_grad_(), entropy.requires_grad_(), targets)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-10, atol=1e-14) for x, y in zip(a, b, strict=True))
