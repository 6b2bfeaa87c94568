"""Gradients of a model on a retain set: what it needs to go on doing what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefix_rft.data import DataError, load_rows
from prefix_rft.data.demonstrations import IDS, tokenize_demonstrations
from prefix_rft.data.pictures import asked
from prefix_rft.data.render import Renderer
from prefix_rft.engines.pictures import inputs_of


def retain_gradients(
    model: torch.nn.Module, renderer: Renderer, data: str, examples: int, budget: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums of the gradients and of their squares, by parameter name.

    The loss of a demonstration is the mean negative log-likelihood of its tokens; each one is a
    gradient of its own. All processes compute the same.

    Args:
        model: causal language model, neither sharded nor wrapped.
        renderer: how prompts and demonstrations become ids.
        data: the retain set: a file, a folder, or the name of a dataset.
        examples: the most rows of it that are looked at.
        budget: the most tokens of a demonstration.

    Raises:
        DataError: the retain set cannot be read, or has no demonstration within the budget.
    """
    dataset = load_rows(data, folder=Path(), limit=examples)
    rows, report = tokenize_demonstrations(dataset, renderer.tokenizer, budget, renderer=renderer)
    if report is None or not report.demonstrations:
        raise DataError(f"retain set '{data}' has no demonstration within {budget} tokens")
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {n: torch.zeros_like(p) for n, p in named.items()}
    squares = {n: torch.zeros_like(p) for n, p in named.items()}
    device = next(iter(named.values())).device
    was_training = model.training
    model.eval()
    row: Any
    for row in rows:
        for demonstration in row[IDS]:
            inputs, start = inputs_of(renderer, asked(row), demonstration, device)
            logits = model(**inputs).logits[0, start - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, start:])
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, g in zip(named, gradients, strict=True):
                if g is not None:
                    sums[name] += g
                    squares[name] += g**2
    model.train(was_training)
    return sums, squares
