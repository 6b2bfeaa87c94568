"""Gradients of a model on demonstrations that are looked at, not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prefix_rft.core.saliency import term
from prefix_rft.data import DataError, load_rows
from prefix_rft.data.demonstrations import ASKED, IDS, asked_again, tokenize_demonstrations
from prefix_rft.data.pictures import asked
from prefix_rft.data.render import Renderer
from prefix_rft.engines.pictures import model_inputs, prompt_inputs

Example = tuple[Any, list[int]]
"""A row that asks, whose pictures are not open yet, or the ids of a prompt; and those of a
demonstration behind it."""


def retained(renderer: Renderer, data: str, examples: int, budget: int) -> list[Example]:
    """Demonstrations of a retain set.

    Args:
        renderer: how prompts and demonstrations become ids.
        data: the retain set: a file, a folder, or the name of a dataset.
        examples: the most demonstrations that are taken, of its first rows.
        budget: the most tokens of a demonstration; longer ones are left out.

    Raises:
        DataError: the retain set cannot be read, or has no demonstration within the budget.
    """
    dataset = load_rows(data, folder=Path(), limit=examples)
    rows, report = tokenize_demonstrations(dataset, renderer.tokenizer, budget, renderer=renderer)
    if report is None or not report.demonstrations:
        raise DataError(f"retain set '{data}' has no demonstration within {budget} tokens")
    return list(islice(_examples(rows), examples))


def drawn(rows: Any, examples: int, seed: int) -> list[Example]:
    """Demonstrations of the rows that are trained on, in a random order.

    Args:
        rows: the dataset, with demonstrations as token ids, or with ``labels``.
        examples: the most demonstrations that are taken.
        seed: decides which.

    Raises:
        DataError: there is no demonstration, or the rows are a stream.
    """
    if not isinstance(rows, Dataset):
        raise DataError(
            "parameter_mask: examples are drawn from all rows, which a stream does not allow: give "
            "score_steps, or a dataset of known length"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found = list(islice(_examples(rows[i] for i in order), examples))
    if not found:
        raise DataError(
            "parameter_mask: examples looks at demonstrations, and no row has one: give score_steps"
        )
    return found


def _examples(rows: Iterable[Any]) -> Iterator[Example]:
    for row in rows:
        if ASKED + "prompt" in row:
            yield row, list(row["input_ids"])
            continue
        if "labels" in row:
            ids, target = row["input_ids"], [x != -100 for x in row["labels"]]
            yield ids[: target.index(True)], ids[target.index(True) :]
            continue
        for demonstration in row[IDS]:
            yield row, list(demonstration)


def example_gradients(
    model: torch.nn.Module,
    renderer: Renderer,
    examples: Iterable[Example],
    weights: Mapping[str, torch.nn.Parameter],
    score: str,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """Sums over demonstrations of what a score adds up, in float32, by the weight's name.

    The loss of a demonstration is the mean negative log-likelihood of its tokens in nats; each one
    is a gradient of its own, so ``fisher`` is that of single demonstrations. Dropout is off.

    Args:
        model: causal language model, neither sharded nor wrapped.
        renderer: how prompts become ids.
        examples: this process's share of them.
        weights: the weights whose gradients are wanted.
        score: see :func:`core.saliency.term`.
        all_sum: the sum over all processes.
    """
    totals = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in weights.items()}
    device = next(iter(weights.values())).device
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        for asks, demonstration in examples:
            prompt, pictures = _prompt(asks, renderer)
            inputs = model_inputs(prompt, pictures, demonstration, device)
            first = max(1, len(prompt))  # nothing predicts the first token of all
            logits = model(**inputs).logits[0, first - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, first:])
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, g in zip(weights, gradients, strict=True):
                if g is not None:
                    totals[name] += term(score, g)
    model.train(was_training)
    return {name: all_sum(total) for name, total in totals.items()}


def _prompt(asks: Any, renderer: Renderer) -> tuple[list[int], dict[str, Tensor]]:
    if isinstance(asks, list):
        return asks, {}
    question = asked_again(asks) if ASKED + "prompt" in asks else asked(asks)
    return prompt_inputs(renderer, question)
