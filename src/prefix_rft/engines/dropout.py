"""A policy is one distribution: what makes its forwards differ by chance is turned off.

With dropout the policy that is trained is another one at every forward, and not the one that has
sampled: importance ratios differ from 1 although no weight has moved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from prefix_rft.support.errors import UserError

NOISE = re.compile("drop|jitter")
"""In the names of what holds a rate: ``attention_dropout``, ``layerdrop``, ``resid_pdrop``,
``drop_path_rate``, ``router_jitter_noise``, PEFT's ``rank_dropout``, ..."""


RANDOM = ("phimoe",)
"""Kinds of models that draw their experts in training, which no rate turns off."""


def turn_off_dropout(*models: nn.Module | None) -> list[str]:
    """Set every rate of dropout and its kin to 0, for good; a sentence if one was not.

    Rates are those of dropout modules, of modules that read a number of their own in the forward
    (attention, LayerDrop, PEFT's layers), and of configs, which some models read there.

    Raises:
        UserError: a model that cannot be had without its noise.
    """
    names: set[str] = set()
    for model in models:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind in RANDOM:
            raise UserError(
                f"model type '{kind}' draws its experts at random in training, so what is trained "
                "would not be the policy that samples: use another model"
            )
    for model in models:
        for holder, name, key in [] if model is None else list(_rates(model)):
            names.add(f"{type(holder).__name__}.p" if name == "p" else name)
            if key is None:
                setattr(holder, name, 0.0)
            else:
                getattr(holder, name)[key] = 0.0
    if not names:
        return []
    return [
        f"dropout is turned off ({', '.join(sorted(names))}): with it the policy that is trained "
        "would not be the one that samples"
    ]


def drops(model: nn.Module) -> bool:
    """Whether forwards of a model in training differ by chance."""
    return next(_rates(model), None) is not None


def _rates(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Where a rate that is not 0 stands: its holder, its name, and its key in a dict, or None."""
    seen: set[int] = set()
    holders: list[Any] = []
    for module in model.modules():
        holders.append(module)
        config = vars(module).get("config")
        if config is not None and not isinstance(config, dict):
            holders.append(config)
    while holders:
        holder = holders.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        own_p = isinstance(holder, nn.Module) and NOISE.search(type(holder).__name__.lower())
        for name, value in list(vars(holder).items()):
            if hasattr(value, "to_dict") and not isinstance(holder, nn.Module):
                holders.append(value)  # the text config of a larger one
            if not (NOISE.search(name.lower()) or (own_p and name == "p")):
                continue
            if _is_rate(value):
                yield holder, name, None
            elif isinstance(value, dict):
                yield from ((holder, name, k) for k, v in value.items() if _is_rate(v))


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0
