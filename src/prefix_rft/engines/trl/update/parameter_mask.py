"""Train some of the weights only, with any method: which ones, and that no other one moves.

The gradient of a masked weight is taken away where it arises, so that clipping, accumulation and
processes see the masked gradient; after the update the masked weights are put back, so that neither
weight decay nor the optimizer's memory moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from prefix_rft.core.saliency import SCOPES, SCORES, keep_most_salient, salience
from prefix_rft.engines.trl.tensors import read_tensors, write_tensors
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

FILE = "parameter_mask.safetensors"
KINDS = ("speft", "mifo", "retain")
ACTIONS = ("freeze", "zero")


@dataclass(frozen=True)
class MaskOptions:
    """A recipe's ``parameter_mask``.

    Attributes:
        kind: ``speft`` trains the most salient weights (arXiv 2412.13488); ``mifo`` freezes, in
            steps of imitation, the weights that the other steps have changed most (arXiv
            2510.04454; the rule is ours); ``retain`` looks at what a retain set needs (after arXiv
            2410.03833; the rule is ours).
        fraction: the share of the weights that is: trained (``speft``), frozen in imitation
            (``mifo``), frozen as the most needed or zeroed as the least needed (``retain``).
        score: salience, see ``core.saliency``.
        scope: the fraction is of all weights together (``global``) or of each tensor (``local``).
        update_every: choose anew after so many steps; 0 is never (``speft``).
        score_steps: optimizer steps whose gradients are looked at; all but the last change nothing.
        history: weight of the past in the moving average of changes (``mifo``).
        data: the retain set: a file, a folder, or the name of a dataset.
        action: ``freeze`` the weights that the retain set needs most, or ``zero`` once those that
            it needs least (``retain``).
        examples: demonstrations of the retain set that are looked at.
    """

    kind: str
    fraction: float = 0.05
    score: str = "gradient"
    scope: str = "global"
    update_every: int = 0
    score_steps: int = 1
    history: float = 0.9
    data: str | None = None
    action: str = "freeze"
    examples: int = 64

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> MaskOptions:
        """Check the options of a recipe.

        Raises:
            UserError: one is unknown or cannot be used.
        """
        if not isinstance(settings, Mapping):
            raise UserError(f"parameter_mask must be a mapping with a kind, got {settings!r}")
        names = {f.name: str(f.type) for f in fields(cls)}
        refuse_unknown("option of parameter_mask", settings, names)
        check_types("option of parameter_mask", settings, names)
        if "kind" not in settings:
            raise UserError(f"parameter_mask needs a kind: {', '.join(KINDS)}")
        options = cls(**settings)
        choose("kind of parameter_mask", options.kind, KINDS)
        choose("salience score", options.score, SCORES)
        choose("scope of the mask", options.scope, SCOPES)
        choose("action of parameter_mask", options.action, ACTIONS)
        if not 0.0 < options.fraction < 1.0:
            raise UserError(f"parameter_mask: fraction must be in (0, 1), got {options.fraction}")
        if options.update_every < 0 or options.score_steps < 1 or options.examples < 1:
            raise UserError(
                "parameter_mask: update_every must be at least 0, score_steps and examples 1"
            )
        if not 0.0 <= options.history < 1.0:
            raise UserError(f"parameter_mask: history must be in [0, 1), got {options.history}")
        if (options.data is None) == (options.kind == "retain"):
            raise UserError("parameter_mask: kind retain needs data, and no other kind has any")
        return options


RetainGradients = Callable[[], tuple[dict[str, Tensor], dict[str, Tensor]]]
"""Sums of the gradients of a retain set and of their squares, by the names of weights."""


class ParameterMask(TrainerCallback):
    """Holds the masks, and holds the weights to them.

    Args:
        options: which weights are trained.
        model: the policy, neither sharded nor wrapped.
        seed: the seed of the score ``random``.
        retain_gradients: gives those of the retain set, when training begins (``retain``).
    """

    def __init__(
        self,
        options: MaskOptions,
        model: torch.nn.Module,
        seed: int,
        retain_gradients: RetainGradients,
    ) -> None:
        self.options, self.model = options, model
        self.seed, self.retain_gradients = seed, retain_gradients
        self.step = 0
        self.masks: dict[str, Tensor] | None = None
        self.imitation = False
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.memory_before: dict[Any, dict[str, Any]] = {}
        self.scored = 0
        for name, p in self._parameters():
            p.register_hook(lambda gradient, name=name: self._filter(name, gradient))

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def begin_step(self, imitation: bool) -> None:
        """Before the forwards of an optimizer step: whether it is one of imitation.

        For one, what the other steps have changed most is frozen (``mifo``).
        """
        self.imitation = imitation
        if self.options.kind == "mifo" and imitation and self.changes:
            most = keep_most_salient(self.changes, self.options.fraction, self.options.scope)
            self.masks = {name: ~m for name, m in most.items()}

    @property
    def _active(self) -> bool:
        return self.masks is not None and (self.options.kind != "mifo" or self.imitation)

    def _filter(self, name: str, gradient: Tensor) -> Tensor:
        if not self._active or self._choosing:
            return gradient
        assert self.masks is not None  # noqa: S101
        return gradient * self.masks[name]

    @property
    def _choosing(self) -> bool:
        """Whether the gradients of this step are looked at to choose a mask."""
        if self.options.kind != "speft":
            return False
        every, step = self.options.update_every, self.step
        due = self.masks is None or (every > 0 and step > 0 and step % every == 0)
        return due or self.scored > 0

    # ---- what the trainer's loop calls ---------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the retain set, before the first step."""
        if self.options.kind == "speft" and self.options.score_steps > state.max_steps:
            raise UserError(
                f"parameter_mask: score_steps={self.options.score_steps} looks longer than the run "
                f"of {state.max_steps} steps, so nothing would be trained"
            )
        if self.options.kind != "retain" or self.masks is not None:
            return
        sums, squares = self.retain_gradients()
        scores = self._scores(sums, squares)
        if self.options.action == "freeze":
            needed = keep_most_salient(scores, self.options.fraction, self.options.scope)
            self.masks = {name: ~m for name, m in needed.items()}
            if not any(bool(m.any()) for m in self.masks.values()):
                raise UserError(
                    f"parameter_mask: fraction={self.options.fraction} freezes all weights, so "
                    "nothing would be trained: lower it"
                )
            return
        least = {name: -s for name, s in scores.items()}
        unneeded = keep_most_salient(least, self.options.fraction, self.options.scope)
        for name, p in self._parameters():
            p.data.masked_fill_(unneeded[name], 0.0)
        self.masks = {name: torch.ones_like(m) for name, m in unneeded.items()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of the optimizer step, before any of its gradients."""
        self.step = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose a mask if one is due, and remember the weights that must not move."""
        if self._choosing:
            self._score_gradients()
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
                elif self.options.kind == "mifo":
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

    def _scores(
        self, sums: Mapping[str, Tensor], squares: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {
            name: salience(self.options.score, p.detach(), sums[name], squares[name], self.seed + i)
            for i, (name, p) in enumerate(self._parameters())
        }

    def _score_gradients(self) -> None:
        """Add up this step's gradients; after the last step to look at, choose."""
        for name, p in self._parameters():
            g = torch.zeros_like(p) if p.grad is None else p.grad.detach()
            self.sums[name] = self.sums.get(name, torch.zeros_like(g)) + g
            self.squares[name] = self.squares.get(name, torch.zeros_like(g)) + g**2
        self.scored += 1
        if self.scored < self.options.score_steps:
            return
        scores = self._scores(self.sums, self.squares)
        self.masks = keep_most_salient(scores, self.options.fraction, self.options.scope)
        self.sums, self.squares, self.scored = {}, {}, 0
        for name, p in self._parameters():
            if p.grad is not None:
                p.grad.mul_(self.masks[name])

    def _track(self, name: str, change: Tensor) -> None:
        old, alpha = self.changes.get(name), self.options.history
        self.changes[name] = change if old is None else alpha * old + (1.0 - alpha) * change

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write masks and history."""
        kinds = {"mask": self.masks or {}, "change": self.changes, "sum": self.sums}
        kinds["squares"] = self.squares
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
        of: dict[str, dict[str, Tensor]] = {"mask": {}, "change": {}, "sum": {}, "squares": {}}
        parameters = dict(self._parameters())
        for key, tensor in data.items():
            kind, _, name = key.partition("/")
            if kind not in of or name not in parameters or parameters[name].shape != tensor.shape:
                raise UserError(f"'{folder / FILE}' holds the mask of another model")
            of[kind][name] = tensor.to(parameters[name].device)
        if any(len(tensors) not in (0, len(parameters)) for tensors in of.values()):
            raise UserError(f"'{folder / FILE}' lacks some of the weights")
        self.masks = of["mask"] or None
        self.changes, self.sums, self.squares = of["change"], of["sum"], of["squares"]
