"""Under autocast, cast a model's weights once for all tokens of a sampling call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Inside, autocast casts each weight at its first use and keeps the copy to the end.

    By itself it keeps copies only of weights that take a gradient; those of an adapter's base, or
    of a model that is only evaluated, it casts anew for every token. So inside all weights are
    marked as taking one. What is computed is the same to the last bit; the copies take two bytes a
    weight. Without autocast nothing is done. For use without gradients.

    Args:
        model: the model; it comes back as it was.
    """
    kind = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    torch.clear_autocast_cache()  # the weights may have changed within a longer autocast
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
        torch.clear_autocast_cache()
