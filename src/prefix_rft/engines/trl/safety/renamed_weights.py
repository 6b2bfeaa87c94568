"""Weights of a checkpoint whose files have other names for them than the model has.

transformers writes some models under the names of their first release, among them those that read
pictures and mixtures of experts. Its trainer, when it resumes, looks for the model's present names,
warns that it has not found them, and goes on with the weights that the run began with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefix_rft.engines.cached_model import base_of
from prefix_rft.support.errors import UserError


def not_loaded(result: Any) -> list[str]:
    """Names of weights that a file lacks or that the model does not know, after loading it.

    Args:
        result: what ``load_state_dict`` returned.
    """
    return [*result.missing_keys, *result.unexpected_keys]


@torch.no_grad()
def load_renamed(model: Any, folder: Path) -> None:
    """Load the weights in a folder as ``from_pretrained`` does, which knows their old names.

    Args:
        model: the model, neither sharded nor wrapped.
        folder: a checkpoint of it.

    Raises:
        UserError: there are other weights in the folder than the model has.
    """
    base = base_of(model)
    # float32 holds what any narrower type does, and is cast back without loss.
    stored, told = type(base).from_pretrained(
        folder, config=base.config, dtype=torch.float32, output_loading_info=True
    )
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if faults := [str(name) for key in keys for name in told[key]]:
        raise UserError(
            f"checkpoint '{folder}' has other weights than the model, such as {faults[0]}: resume "
            "with the model that the run began with"
        )
    base.load_state_dict(stored.state_dict())
