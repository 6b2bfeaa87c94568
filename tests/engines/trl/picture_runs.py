"""Trainers of rows with pictures, watched."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from prefix_rft import PrefixRFTTrainer
from second.step.update import Row
from tiny import make_config
from tiny_vision import make_byte_tokenizer, make_llava


def spread(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    """How many characters of a completion are below the letter that the answer picks."""
    texts = [c[0]["content"] for c in completions]
    return [sum(ord(x) < 70 + int(a) for x in t) / 10 for t, a in zip(texts, answer, strict=True)]


def columns_of(rows: Dataset) -> dict[str, Any]:
    return {name: list(rows[name]) for name in rows.column_names}


def rl(
    folder: Path,
    rows: Dataset,
    make: Callable = make_llava,
    reward: Callable = spread,
    **settings: Any,
) -> Any:
    """Two prompts of four rows a micro-batch of TRL's."""
    model, processor = make()
    sizes = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 10,
        "shuffle_dataset": False,
        "log_rollouts": True,
    }
    return PrefixRFTTrainer(
        model,
        reward,
        make_config(folder, **{**sizes, **settings}),
        train_dataset=rows,
        processing_class=processor,
    )


class Steps(TrainerCallback):
    """Weights before each step, its gradient and its rows."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.losses, self.steps = trainer, [], []
        original = trainer._compute_loss

        def listen(*args: Any, **kwargs: Any) -> Tensor:
            loss = original(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

        trainer._compute_loss = listen
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()
        ]
        rows = [row for part in self.trainer._buffered_inputs for row in plain(part)]
        loss, self.losses = sum(self.losses), []
        self.steps.append((copy.deepcopy(model.state_dict()), gradient, loss, rows))


def plain(batch: dict[str, Any]) -> list[Row]:
    """Rows without padding; the reward is given again, from the ids."""
    texts, rows = make_byte_tokenizer(), []
    for i in range(len(batch["completion_ids"])):
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        example = int(batch["row_example"][i])
        text = texts.decode([x for x in completion if x > 1])
        known = spread([[{"content": text}]], [str(example * 7 % 10)])[0]
        assert batch["row_reward"][i].item() == pytest.approx(known)
        rows.append(
            Row(
                batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist(),
                completion,
                int(batch["prefix_mask"][i].sum()),
                bool(batch["demo_mask"][i].any()),
                known,
                int(batch["row_group"][i]),
                example,
            )
        )
    return rows
