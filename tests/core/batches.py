"""Steps as the package's batches and batches as steps; and whether both objectives agree."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Batch, loss
from prefix_rft.methods import load
from second.objective import FORMULAS, Step
from second.objective.parts import ALL, DEMO, GUIDED, PAD, PREFIX, SAMPLED


def mask(step: Step, *kinds: str) -> Tensor:
    return torch.tensor([[k in kinds for k in row] for row in step.kind])


def batch_of(step: Step, **changes: Any) -> Batch:
    """A step as a batch, numbers outside the responses as they are."""

    def numbers(values: list | None) -> Tensor | None:
        return torch.tensor(values, dtype=torch.float64) if values else None

    response = mask(step, *ALL)
    batch = Batch(
        tokens_BT=response.long(),
        response_mask_BT=response,
        prefix_mask_BT=mask(step, PREFIX),
        demo_mask_BT=mask(step, DEMO),
        old_logp_BT=numbers(step.old),
        reward_B=torch.tensor(step.reward, dtype=torch.float64),
        group_B=torch.tensor(step.group),
        ref_logp_BT=numbers(step.ref),
        weight_BT=numbers(step.weight),
        truncated_B=torch.tensor(step.truncated) if step.truncated else None,
        teacher_logp_MBT=numbers([step.teacher]) if step.teacher else None,
        taught_MB=torch.tensor([step.taught]) if step.taught else None,
        context_B=torch.tensor([i in step.context for i in range(len(step.kind))]),
        guided_B=mask(step, GUIDED).any(1),
    )
    return replace(batch, **changes)


def step_of(batch: Batch, logp: Tensor, entropy: Tensor) -> Step:
    """A batch and what a policy makes of it as a step."""

    def kind(i: int, t: int) -> str:
        if batch.demo_mask_BT[i, t]:
            return DEMO
        if batch.prefix_mask_BT[i, t]:
            return PREFIX
        return SAMPLED if batch.response_mask_BT[i, t] else PAD

    def plain(x: Tensor | None) -> Any:
        return None if x is None else x.tolist()

    B, T = logp.shape
    return Step(
        kind=[[kind(i, t) for t in range(T)] for i in range(B)],
        reward=batch.reward_B.tolist(),
        group=batch.group_B.tolist(),
        logp=logp,
        entropy=entropy,
        old=plain(batch.old_logp_BT),
        ref=plain(batch.ref_logp_BT) or [],
        weight=plain(batch.weight_BT),
        truncated=plain(batch.truncated_B) or [],
        context=frozenset(i for i, c in enumerate(plain(batch.context_B) or []) if c),
    )


def gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Of a loss, zeros where it does not depend on a leaf."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    return list(
        torch.autograd.grad(
            value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def agree(
    name: str,
    options: dict,
    batch: Batch,
    policy: tuple[Tensor, Tensor],
    leaves: Sequence[Tensor],
    wrong: str = "",
) -> bool:
    """Whether loss and gradients of the package are those of the formula, to 1e-10.

    ``policy`` is its log-probs and entropies; the package's gradient outside the responses must be
    0, whatever stands there.
    """
    out = loss(load(name, **options), batch, *policy)
    theirs = FORMULAS[name](replace(step_of(batch, *policy), o=options, wrong=wrong))
    assert all(isinstance(x, float) and math.isfinite(x) for x in out.metrics.values())
    if not (math.isfinite(out.loss.item()) and math.isfinite(theirs.item())):
        return False
    same = abs(out.loss.item() - theirs.item()) < 1e-10
    pairs = zip(gradients(out.loss, *leaves), gradients(theirs, *leaves), strict=True)
    for x, (a, b) in zip(leaves, pairs, strict=True):
        if any(x is p for p in policy):
            same &= bool((a[~batch.response_mask_BT] == 0).all())
            b = b.where(batch.response_mask_BT, 0.0)
        same &= bool((a - b).abs().max() < 1e-10)
    return same


def small(**changes: Any) -> Batch:
    """A plain row with two prompt tokens, a hybrid row, a demonstration, a row masked out."""
    body = [[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    mask = torch.tensor(body).bool()
    prefix, demo = torch.zeros_like(mask), torch.zeros_like(mask)
    prefix[1, :2], demo[2, 1:3] = True, True
    parts = {
        "tokens_BT": torch.arange(16).reshape(4, 4),
        "response_mask_BT": mask,
        "prefix_mask_BT": prefix,
        "demo_mask_BT": demo,
        "old_logp_BT": torch.zeros(4, 4),
        "reward_B": torch.tensor([0.0, 1.0, math.nan, 0.5]),
        "group_B": torch.tensor([3, 3, 3, 9]),
    }
    return Batch(**{**parts, **changes})
