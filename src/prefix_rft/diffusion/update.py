"""One optimizer update: rows, noise, losses, gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefix_rft.diffusion.loss import (
    Noised,
    PairErrors,
    Predict,
    preference_loss,
    squared_error,
)
from prefix_rft.diffusion.pool import stream
from prefix_rft.diffusion.process import Process
from prefix_rft.diffusion.recipe import DiffusionRecipe
from prefix_rft.diffusion.rows import Rows, RowTensors, order
from prefix_rft.support.errors import RunError


@dataclass(frozen=True)
class Drawn:
    """All that an update is made of, before anything is computed with the policy.

    Attributes:
        winner: (B, ...).
        sample: what stands beside the winners, likewise; None for SFT.
        condition: labels (B,), embeddings (B, L, D) or None.
        level_B: the level of noise of each row.
        noise: the noise on the winners (B, ...).
        sample_noise: the noise on the samples; the same tensor where it is shared.
    """

    winner: Tensor
    sample: Tensor | None
    condition: Tensor | None
    level_B: Tensor
    noise: Tensor
    sample_noise: Tensor

    def pieces(self, size: int) -> Iterator[Drawn]:
        """The rows in pieces of at most so many."""
        parts = {k: None if v is None else v.split(size) for k, v in vars(self).items()}
        for i in range(math.ceil(len(self.winner) / size)):
            piece: dict[str, Any] = {k: v and v[i] for k, v in parts.items()}
            yield Drawn(**piece)


def draw(
    recipe: DiffusionRecipe,
    process: Process,
    rows: Rows,
    reference: Predict,
    step: int,
    device: torch.device,
) -> Drawn:
    """The rows of an update and its noise: a function of the recipe, the step and the reference.

    Chance comes from the CPU, so that it does not depend on the device nor on how the rows are
    split. With SSPO the reference generates the samples; nothing of it has a gradient.

    Args:
        recipe: the recipe.
        process: how noise is put on examples.
        rows: the rows of the run.
        reference: the reference's prediction, which SFT and DPO do not call here.
        step: updates before this one.
        device: where the tensors go.
    """
    size = recipe.batch_size
    batch: RowTensors = rows.batch(order(recipe.seed, len(rows.image), step * size, size))
    condition = None if batch.condition is None else batch.condition.to(device)
    winner = batch.winner.to(device)
    source = stream(recipe.seed, "noise", step)
    level_B = torch.randint(process.levels, (size,), generator=source).to(device)
    noise = torch.randn(winner.shape, generator=source).to(device)
    sample_noise = noise
    if recipe.shared_noise is False:
        sample_noise = torch.randn(winner.shape, generator=source).to(device)
    sample = None
    if recipe.method == "dpo" and batch.loser is not None:
        sample = batch.loser.to(device)
    elif recipe.method == "sspo":
        begin = torch.randn(winner.shape, generator=stream(recipe.seed, "sample", step)).to(device)
        sample = sampled(process, reference, begin, condition, recipe)
    return Drawn(winner, sample, condition, level_B, noise, sample_noise)


def sampled(
    process: Process, predict: Predict, noise: Tensor, condition: Any, recipe: DiffusionRecipe
) -> Tensor:
    """Samples (B, ...) out of noise, in forwards of at most the recipe's micro_batch_size rows."""
    size = recipe.micro_batch_size or recipe.batch_size
    conditions = [None] * len(noise) if condition is None else condition.split(size)
    return torch.cat(
        [
            process.sample(predict, piece, told, recipe.sample_steps)
            for piece, told in zip(noise.split(size), conditions, strict=False)
        ]
    )


def piece_loss(
    recipe: DiffusionRecipe, process: Process, policy: Predict, reference: Predict, drawn: Drawn
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each row of a piece, and what is logged of them: loss_B and tensors (B,)."""
    winner = process.noised(drawn.winner, drawn.noise, drawn.level_B, drawn.condition)
    if drawn.sample is None:
        error_B = squared_error(policy, winner)
        return error_B, {"diffusion/winner_error": error_B.detach()}
    sample = process.noised(drawn.sample, drawn.sample_noise, drawn.level_B, drawn.condition)
    both = _joined(winner, sample)
    ours = PairErrors(*squared_error(policy, both).chunk(2))
    with torch.no_grad():
        theirs = PairErrors(*squared_error(reference, both).chunk(2))
    found = preference_loss(ours, theirs, recipe.beta or 0.0, recipe.flip or "none")
    return found.loss_B, {
        "diffusion/winner_error": ours.winner_B.detach(),
        "diffusion/winner_gain": found.winner_gain_B,
        "diffusion/sample_gain": found.sample_gain_B,
        "diffusion/flip": found.flip_B,
    }


def _joined(first: Noised, second: Noised) -> Noised:
    """Both in one batch, for one forward."""
    condition = first.condition
    if condition is not None:
        condition = torch.cat([condition, second.condition])
    return Noised(
        torch.cat([first.x, second.x]),
        torch.cat([first.t_B, second.t_B]),
        condition,
        torch.cat([first.target, second.target]),
    )


def update(
    recipe: DiffusionRecipe,
    process: Process,
    policy: Predict,
    reference: Predict,
    optimizer: torch.optim.Optimizer,
    drawn: Drawn,
) -> dict[str, float]:
    """Take one step of the optimizer on the mean loss of the rows; returns what is logged.

    Raises:
        RunError: the loss or the gradient is not finite; no weight has moved then.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    rows = len(drawn.winner)
    sums: dict[str, float] = {"loss": 0.0}
    for piece in drawn.pieces(recipe.micro_batch_size or rows):
        loss_B, told = piece_loss(recipe, process, policy, reference, piece)
        (loss_B.sum() / rows).backward()
        for name, values_B in {"loss": loss_B.detach(), **told}.items():
            sums[name] = sums.get(name, 0.0) + float(values_B.double().sum())
    limit = recipe.max_grad_norm or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    means = {name: total / rows for name, total in sums.items()}
    if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
        raise RunError(
            f"loss {means['loss']:g}, norm of the gradient {norm:g}: the update was not made; a "
            "lower learning_rate or beta may help"
        )
    optimizer.step()
    return {**means, "grad_norm": norm}
