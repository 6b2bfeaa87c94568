"""How many weights a recipe has, and how many of them it trains."""

from __future__ import annotations

from typing import Any

from prefix_rft.checks.device_memory import count_parameters
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.new_adapter import (
    adapter_config,
    config_of,
    count_trained,
    refuse_other_options,
)
from prefix_rft.engines.setup import Setup


def count_weights(setup: Setup, config: Any) -> tuple[int, int]:
    """The weights of the model with its adapter, if any, and how many of them are trained.

    Raises:
        UserError: the adapter does not fit the model.
        UncountedError: they cannot be counted.
    """
    on_disk, options = find_adapter(setup.recipe.model_source()), setup.recipe.peft
    if on_disk is not None:
        there = config_of(on_disk)
        if options is not None:
            refuse_other_options(there, options)
        return count_trained(config, there, on_disk)
    if options is not None:
        return count_trained(config, adapter_config(options))
    parameters = count_parameters(config)
    return parameters, parameters
