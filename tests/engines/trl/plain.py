"""The training step written a second time: one unpadded row at a time, in plain torch.

Nothing here calls prefix_rft. Only the sampled tokens, the prefix lengths and the rewards come from
the trainer; log-probs, entropies, selection, advantages, loss and gradient are computed anew.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback


@dataclass
class Row:
    """One rollout as plain lists."""

    prompt: list[int]
    completion: list[int]
    prefix: int
    reward: float
    group: int


def rows_of(batch: dict[str, Any]) -> list[Row]:
    """Plain rows from a TRL loss batch."""
    rows = []
    for i in range(len(batch["completion_ids"])):
        rows.append(
            Row(
                prompt=batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist(),
                completion=batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist(),
                prefix=int(batch["prefix_mask"][i].sum()),
                reward=batch["row_reward"][i].item(),
                group=int(batch["row_group"][i]),
            )
        )
    return rows


def logp_and_entropy(model: Any, row: Row, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the completion's tokens and entropies before them, without any padding."""
    ids = torch.tensor([row.prompt + row.completion])
    logits = model(input_ids=ids).logits[0].float() / temperature
    table = logits.log_softmax(-1)[len(row.prompt) - 1 : -1]
    picked = table[range(len(row.completion)), row.completion]
    return picked, -(table.exp() * table).sum(-1)


def advantages(rows: list[Row]) -> list[float]:
    """Dr. GRPO over all rows of each group."""
    return [
        r.reward
        - sum(o.reward for o in rows if o.group == r.group)
        / sum(1 for o in rows if o.group == r.group)
        for r in rows
    ]


def kept(model: Any, rows: list[Row], temperature: float, fraction: float) -> list[set[int]]:
    """Prefix positions that keep their advantage: the top fraction over all rows given."""
    scored = []
    with torch.no_grad():
        for i, row in enumerate(rows):
            if row.prefix:
                entropy = logp_and_entropy(model, row, temperature)[1]
                scored += [(entropy[t].item(), i, t) for t in range(row.prefix)]
    scored.sort(key=lambda x: -x[0])
    chosen: list[set[int]] = [set() for _ in rows]
    for _, i, t in scored[: math.ceil(fraction * len(scored) - 1e-6)]:
        chosen[i].add(t)
    return chosen


def step(
    model: Any,
    rows: list[Row],
    old: list[torch.Tensor],
    adv: list[float],
    *,
    temperature: float,
    fraction: float,
    const: float,
    epsilon: float = 0.2,
) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of one Prefix-RFT update (Eq. 3 with Dr. GRPO's normaliser)."""
    keep = kept(model, rows, temperature, fraction)
    model.zero_grad()
    total = 0.0
    for i, row in enumerate(rows):
        logp, _ = logp_and_entropy(model, row, temperature)
        loss = torch.zeros(())
        for t in range(len(row.completion)):
            a = adv[i] if t >= row.prefix or t in keep[i] else 0.0
            ratio = torch.exp(logp[t] - old[i][t])
            loss = loss - torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        loss = loss / (len(rows) * const)
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters()]


@dataclass
class Record:
    """What a trainer did in one optimizer step."""

    weights: dict[str, torch.Tensor]
    gradient: list[torch.Tensor]
    loss: float
    rows: list[Row] = field(default_factory=list)


class Recorder(TrainerCallback):
    """Keeps the weights before and the gradient of every optimizer step, and its rows."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.records: list[Record] = []
        self.losses: list[float] = []

    def watch(self, trainer: Any) -> None:
        """Attach to a trainer and listen to its loss."""
        self.trainer = trainer
        original = trainer._compute_loss

        def listen(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss = original(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

        trainer._compute_loss = listen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        size = args.gradient_accumulation_steps
        last = (trainer._step - 1) % args.steps_per_generation
        window = trainer._buffered_inputs[last - size + 1 : last + 1]
        self.records.append(
            Record(
                copy.deepcopy(model.state_dict()),
                [p.grad.clone() for p in model.parameters()],
                sum(self.losses[-size:]),
                [row for micro in window for row in rows_of(micro)],
            )
        )


def relative_error(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm of ``b``."""
    difference = math.sqrt(sum(((x - y) ** 2).sum().item() for x, y in zip(a, b, strict=True)))
    return difference / math.sqrt(sum((y**2).sum().item() for y in b))
