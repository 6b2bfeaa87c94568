"""Gradients of a model on a retain set: what it needs to go on doing what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefix_rft.data import DataError, load_rows
from prefix_rft.data.demonstrations import IDS, tokenize_demonstrations
from prefix_rft.data.render import Renderer


def retain_gradients(trainer: Any, options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums of the gradients and of their squares, by parameter name.

    The loss of a demonstration is the mean negative log-likelihood of its tokens; each one is a
    gradient of its own. All processes compute the same.

    Raises:
        DataError: the retain set cannot be read, or has no demonstration within the budget.
    """
    tokenizer = trainer.processing_class
    budget = trainer.args.max_completion_length
    rows = load_rows(options.data, folder=Path(), limit=options.examples)
    rows, report = tokenize_demonstrations(rows, tokenizer, budget, renderer=trainer.renderer)
    if report is None or not report.demonstrations:
        raise DataError(f"retain set '{options.data}' has no demonstration within {budget} tokens")
    model = trainer.accelerator.unwrap_model(trainer.model)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {n: torch.zeros_like(p) for n, p in named.items()}
    squares = {n: torch.zeros_like(p) for n, p in named.items()}
    render: Renderer = trainer.renderer
    was_training = model.training
    model.eval()
    row: Any
    for row in rows:
        for demonstration in row[IDS]:
            start = render.prompt(row["prompt"])
            ids = torch.tensor([[*start, *demonstration]], device=trainer.accelerator.device)
            logits = model(input_ids=ids).logits[0, len(start) - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, len(start) :])
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, g in zip(named, gradients, strict=True):
                if g is not None:
                    sums[name] += g
                    squares[name] += g**2
    model.train(was_training)
    return sums, squares
