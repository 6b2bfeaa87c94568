"""Train some of the weights only, with any method: which ones, and that no other one moves.

The gradient of a masked weight is taken away where it arises, so that clipping, accumulation and
processes see the masked gradient; after the update the masked weights are put back, so that neither
weight decay nor the optimizer's memory moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from prefix_rft.core.saliency import (
    WITHOUT_GRADIENTS,
    keep_most_salient,
    kept_of_each,
    salience,
    term,
)
from prefix_rft.engines.tensors import read_tensors, write_tensors
from prefix_rft.engines.trl.update.mask_options import MaskOptions
from prefix_rft.engines.trl.update.mask_targets import targets
from prefix_rft.support.errors import RunError, UserError

FILE = "parameter_mask.safetensors"

LookAt = Callable[[Mapping[str, torch.nn.Parameter], int], dict[str, Tensor]]
"""Sums of what the score adds up over demonstrations, of these weights and by their names; the
number says which choice of a mask it is for, from 0."""


class ParameterMask(TrainerCallback):
    """Holds the masks, and holds the weights to them.

    Args:
        options: which weights are trained.
        model: the policy, neither sharded nor wrapped.
        seed: the seed of the score ``random``.
        look_at: gradients of the demonstrations that are looked at: those of the retain set
            (``retain``), or of the rows to train on (``speft``).

    Raises:
        UserError: the model has no such weights, or fewer than the options' count.
    """

    def __init__(
        self, options: MaskOptions, model: torch.nn.Module, seed: int, look_at: LookAt
    ) -> None:
        self.options, self.model = options, model
        self.seed, self.look_at = seed, look_at
        self.targets = targets(model, options.modules or "")
        self._refuse_count()
        self.step = 0
        self.masks: dict[str, Tensor] | None = None
        self.imitation = False
        self.sums: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.memory_before: dict[Any, dict[str, Any]] = {}
        self.scored = 0
        self.looking = False
        for name, p in self._parameters():
            p.register_hook(lambda gradient, name=name: self._filter(name, gradient))

    def _refuse_count(self) -> None:
        options = self.options
        sizes = [p.numel() for p in self.targets.values()]
        sizes = sizes if options.scope == "local" else [sum(sizes)]
        try:
            kept = kept_of_each(sizes, options.fraction, options.count)
        except UserError as error:
            raise UserError(
                f"parameter_mask: {error} (modules: {options.modules}, scope: {options.scope})"
            ) from error
        if options.count is not None and options.kind != "speft" and kept == sizes:
            raise UserError(
                f"parameter_mask: count={options.count} is all of the weights that kind "
                f"{options.kind} chooses from: lower it"
            )

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def begin_step(self, imitation: bool) -> None:
        """Before the forwards of an optimizer step: whether it is one of imitation.

        For one, what the other steps have changed most is frozen (``mifo``).
        """
        self.imitation = imitation
        if self.options.kind == "mifo" and imitation and self.changes:
            self.masks = self._all_but(self._most(self.changes))

    @property
    def _active(self) -> bool:
        return self.masks is not None and (self.options.kind != "mifo" or self.imitation)

    def _filter(self, name: str, gradient: Tensor) -> Tensor:
        if not self._active or self._choosing or self.looking:
            return gradient
        assert self.masks is not None  # noqa: S101
        return gradient * self.masks[name]

    @property
    def _choosing(self) -> bool:
        """Whether the gradients of this step are looked at to choose a mask."""
        if self.options.score_steps is None:
            return False
        return self.masks is None or self._due or self.scored > 0

    @property
    def _due(self) -> bool:
        """Whether a mask is to be chosen anew at this step."""
        every = self.options.update_every or 0
        return every > 0 and self.step > 0 and self.step % every == 0

    # ---- what the trainer's loop calls ---------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose what can be chosen before the first step.

        Raises:
            UserError: the run ends before anything would be trained, or there is nothing to look
                at.
        """
        steps = self.options.score_steps
        if steps is not None and steps > state.max_steps:
            raise UserError(
                f"parameter_mask: score_steps={steps} looks longer than the run of "
                f"{state.max_steps} steps, so nothing would be trained"
            )
        if self.masks is not None or self.options.kind == "mifo" or steps is not None:
            return
        scores = self._looked_at(0)
        if self.options.kind == "speft":
            self.masks = self._none_but(self._most(scores))
        elif self.options.action == "freeze":
            self.masks = self._all_but(self._most(scores))
            if not any(bool(m.any()) for m in self.masks.values()):
                raise UserError(
                    f"parameter_mask: fraction={self.options.fraction} freezes all weights, so "
                    "nothing would be trained: lower it"
                )
        else:
            unneeded = self._most({name: -s for name, s in scores.items()})
            for name, m in unneeded.items():
                self.targets[name].data.masked_fill_(m, 0.0)
            self.masks = self._all_but({n: torch.zeros_like(m) for n, m in unneeded.items()})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of the optimizer step, before any of its gradients; choose anew if it is due.

        The optimizer forgets what it remembers of the weights of before.
        """
        self.step = state.global_step
        if self._due and self.options.score_steps is None:
            every = self.options.update_every or 1
            self.masks = self._none_but(self._most(self._looked_at(self.step // every)))
            self._memory(kwargs["optimizer"]).clear()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose a mask if one is due, and remember the weights that must not move."""
        if self._choosing:
            self._score_gradients(kwargs["optimizer"])
        held = self.scored > 0
        if held:
            memory = self._memory(kwargs["optimizer"])
            self.memory_before = {
                p: {k: v.clone() if torch.is_tensor(v) else v for k, v in own.items()}
                for p, own in memory.items()
            }
        if self._active or held or self.options.kind == "mifo":
            self.before = {name: p.detach().clone() for name, p in self._parameters()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back what must not have moved."""
        held = self.scored > 0
        memory = self._memory(kwargs["optimizer"])
        with torch.no_grad():
            for name, p in self._parameters():
                if name not in self.before:
                    continue
                before = self.before[name]
                if held:
                    p.copy_(before)
                elif self._active:
                    assert self.masks is not None  # noqa: S101
                    mask = self.masks[name]
                    p.copy_(torch.where(mask, p, before))
                    self._mask_memory(memory.get(p, {}), mask)
                elif name in self.targets:
                    self._track(name, (p - before).abs())
        if held:
            memory.clear()  # a step that is only looked at leaves the optimizer as it was
            memory.update(self.memory_before)
            self.memory_before = {}
        self.before = {}

    @staticmethod
    def _memory(optimizer: Any) -> Any:
        """What the optimizer remembers, by parameter."""
        return getattr(optimizer, "optimizer", optimizer).state

    @staticmethod
    def _mask_memory(memory: Mapping[str, Any], mask: Tensor) -> None:
        for value in memory.values():
            if torch.is_tensor(value) and value.shape == mask.shape:
                value.mul_(mask)

    # ---- choosing ------------------------------------------------------------------------------

    def _looked_at(self, choice: int) -> dict[str, Tensor]:
        """The scores by demonstrations that are looked at now, and not trained on."""
        if self.options.score in WITHOUT_GRADIENTS:
            return self._scores({}, choice)
        self.looking = True
        totals = self.look_at(self.targets, choice)
        self.looking = False
        return self._scores(totals, choice)

    def _scores(self, totals: Mapping[str, Tensor], choice: int) -> dict[str, Tensor]:
        score, seed = self.options.score or "", self.seed + 1_000_003 * choice
        scores = {
            name: salience(score, p, totals.get(name), seed + i)
            for i, (name, p) in enumerate(self.targets.items())
        }
        for name, s in scores.items():
            if not bool(s.isfinite().all()):
                raise RunError(
                    f"parameter_mask: the score '{score}' of '{name}' is not finite at step "
                    f"{self.step}: the model or its gradients are not, either"
                )
        return scores

    def _most(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.options
        return keep_most_salient(scores, own.fraction, own.scope or "", own.count)

    def _none_but(self, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks that train what was chosen, of all weights of the model."""
        none = ((n, p) for n, p in self._parameters() if n not in chosen)
        return {**chosen, **{n: torch.zeros_like(p, dtype=torch.bool) for n, p in none}}

    def _all_but(self, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks that freeze what was chosen, of all weights of the model."""
        return {
            n: ~chosen[n] if n in chosen else torch.ones_like(p, dtype=torch.bool)
            for n, p in self._parameters()
        }

    def _score_gradients(self, optimizer: Any) -> None:
        """Add up this step's gradients; after the last step to look at, choose."""
        score, steps = self.options.score or "", self.options.score_steps or 1
        for name, p in self.targets.items():
            g = torch.zeros_like(p) if p.grad is None else p.grad
            t = term(score, g)
            self.sums[name] = self.sums[name] + t if self.scored else t
        self.scored += 1
        if self.scored < steps:
            return
        if self.masks is not None:
            self._memory(optimizer).clear()  # it was of other weights
        self.masks = self._none_but(self._most(self._scores(self.sums, 0)))
        self.sums, self.scored = {}, 0
        for name, p in self._parameters():
            if p.grad is not None:
                p.grad.mul_(self.masks[name])

    def _track(self, name: str, change: Tensor) -> None:
        old, alpha = self.changes.get(name), self.options.history or 0.0
        self.changes[name] = change if old is None else alpha * old + (1.0 - alpha) * change

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write masks and history."""
        kinds = {"mask": self.masks or {}, "change": self.changes, "sum": self.sums}
        data = {f"{kind}/{n}": t.contiguous() for kind, ts in kinds.items() for n, t in ts.items()}
        data["scored"] = torch.tensor([self.scored])
        write_tensors(folder / FILE, data)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is of another model.
        """
        if not (folder / FILE).is_file():
            raise UserError(f"checkpoint '{folder}' has no {FILE}: it was made without a mask")
        data = read_tensors(folder / FILE)
        if "scored" not in data:
            raise UserError(f"'{folder / FILE}' is not the file of a mask")
        self.scored = int(data.pop("scored"))
        of: dict[str, dict[str, Tensor]] = {"mask": {}, "change": {}, "sum": {}}
        parameters = dict(self._parameters())
        for key, tensor in data.items():
            kind, _, name = key.partition("/")
            if kind not in of or name not in parameters or parameters[name].shape != tensor.shape:
                raise UserError(f"'{folder / FILE}' holds the mask of another model")
            of[kind][name] = tensor.to(parameters[name].device)
        for kind, tensors in of.items():
            if (
                tensors
                and tensors.keys() != (parameters if kind == "mask" else self.targets).keys()
            ):
                raise UserError(f"'{folder / FILE}' lacks some of the weights")
        self.masks, self.changes, self.sums = of["mask"] or None, of["change"], of["sum"]
