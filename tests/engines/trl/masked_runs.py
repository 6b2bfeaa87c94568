"""Short runs with a mask on the weights, watched step by step."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from second.step import trl_run
from tiny import make_imitation_config, make_tokenizer

DECAY = {"weight_decay": 0.1, "optim": "adamw_torch", "learning_rate": 1e-2}


class Steps(TrainerCallback):
    """Of every optimizer step: weights before and after, gradients before and after the choice of a
    mask, and the optimizer's memory."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.found: list[dict[str, Tensor]] = []
        self.used: list[dict[str, Tensor]] = []
        self.memory: list[dict[str, list[Tensor]]] = []
        self.masks: list[dict[str, Tensor] | None] = []
        self.imitation: list[bool] = []
        self.trainer: Any = None

    def named(self, model: Any) -> dict[str, Any]:
        return {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients(self, model: Any) -> dict[str, Tensor]:
        named = self.named(model).items()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.before.append({n: p.detach().clone() for n, p in self.named(model).items()})
        self.found.append(self.gradients(model))

    def on_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.used.append(self.gradients(model))

    def on_step_end(
        self, *args: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.after.append({n: p.detach().clone() for n, p in self.named(model).items()})
        state = getattr(optimizer, "optimizer", optimizer).state
        self.memory.append(
            {
                n: [v.clone() for v in state[p].values() if v.shape == p.shape]
                for n, p in self.named(model).items()
                if p in state
            }
        )
        mask = self.trainer.parameter_mask
        held = mask.masks
        self.masks.append(None if held is None else {n: m.clone() for n, m in held.items()})
        self.imitation.append(mask.imitation)

    def moved(self, step: int) -> dict[str, Tensor]:
        """Where the step changed a weight."""
        pairs = zip(self.before[step].items(), self.after[step].values(), strict=True)
        return {n: a != b for (n, a), b in pairs}

    def check(self, step: int, mask: dict[str, Tensor] | None = None) -> None:
        """Outside the mask no weight moves and nothing is remembered; inside, nearly all move."""
        mask = self.masks[step] if mask is None else mask
        assert mask is not None
        moved, inside, both = self.moved(step), 0, 0
        for name, m in mask.items():
            assert not (moved[name] & ~m).any(), name
            assert not self.used[step][name][~m].any(), name
            for value in self.memory[step].get(name, []):
                assert not value[~m].any(), name
            inside, both = inside + int(m.sum()), both + int((moved[name] & m).sum())
        assert both > 0.95 * inside


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def norm(tensors: dict[str, Tensor]) -> float:
    return flat(tensors).double().norm().item()


def top(scores: dict[str, Tensor], fraction: float, scope: str) -> dict[str, Tensor]:
    """The highest scores: of all tensors together, or of each."""

    def best(x: Tensor) -> Tensor:
        keep = torch.zeros(x.numel(), dtype=torch.bool)
        order = sorted(range(x.numel()), key=lambda i: -x[i].item())
        keep[order[: max(1, round(fraction * x.numel()))]] = True
        return keep

    if scope == "local":
        return {n: best(s.flatten()).view(s.shape) for n, s in scores.items()}
    parts = best(flat(scores)).split([s.numel() for s in scores.values()])
    return {n: m.view(s.shape) for (n, s), m in zip(scores.items(), parts, strict=True)}


def same(a: dict[str, Tensor], b: dict[str, Tensor], differing: int = 0) -> bool:
    return set(a) == set(b) and sum(int((a[n] != b[n]).sum()) for n in a) <= differing


def run(
    folder: Path, method: str, mask: dict[str, Any], rules: Any = ("mixed",) * 12, **settings: Any
) -> tuple[Any, Steps, trl_run.Recorder]:
    steps = Steps()
    if method == "sft":
        settings.pop("options", None)
        settings.pop("num_generations", None)
        batch = settings.pop("per_device_train_batch_size", 8)
        recorder = trl_run.Recorder()
        steps.trainer = DemonstrationTrainer(
            trl_run.sharp_model(),
            make_imitation_config(
                folder,
                **{
                    "method": "sft",
                    "per_device_train_batch_size": batch,
                    "save_strategy": "no",
                    "logging_steps": 1,
                    "max_grad_norm": 0.0,
                    "lr_scheduler_type": "constant",
                    "parameter_mask": mask,
                    **DECAY,
                    **settings,
                },
            ),
            train_dataset=trl_run.make_rewards(rules),
            processing_class=make_tokenizer(),
            callbacks=[recorder, steps],
        )
        recorder.watch(steps.trainer, "compute_loss")
    else:
        steps.trainer, recorder = trl_run.start(
            PrefixRFTTrainer,
            folder,
            method,
            trl_run.make_rewards(rules),
            parameter_mask=mask,
            callbacks=[steps],
            **{"per_device_train_batch_size": 8, **DECAY, **settings},
        )
    return steps.trainer, steps, recorder
