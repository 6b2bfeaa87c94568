"""Find the first tensor that holds a number which is not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinite number; None where there is none.

    Costs one pass over the tensors, and waits for the device once. Of a tensor that is spread over
    processes (FSDP2) this process's part is looked at.
    """
    # The norm of squares, since that of the largest takes a CPU 18 times as long; where squares
    # overflow a closer look decides.
    names, tensors = [], []
    for name, whole in named:
        tensor = whole.to_local() if isinstance(whole, DTensor) else whole
        if tensor.is_floating_point() and tensor.numel():  # a process may hold nothing of a tensor
            names.append(name)
            tensors.append(tensor)
    if not tensors or bool(get_total_norm(tensors).isfinite()):
        return None
    bad = (n for n, t in zip(names, tensors, strict=True) if not bool(t.isfinite().all()))
    return next(bad, None)


def weights(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """The weights of a model by their names."""
    return [(name, p.data) for name, p in model.named_parameters()]


def gradients(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """The gradients that a model has, by the names of its weights."""
    return [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]


def optimizer_states(model: torch.nn.Module, optimizer: Any) -> list[tuple[str, Tensor]]:
    """What an optimizer keeps of each weight of a model, with the key of the state."""
    return [
        (f"{name} ({key})", value)
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if torch.is_tensor(value)
    ]
