"""Whether the rows of an update can be packed."""

from __future__ import annotations

from typing import Any

from prefix_rft.checks.findings import Findings
from prefix_rft.engines.models import UncountedError, without_weights
from prefix_rft.engines.packed.model import why_not
from prefix_rft.engines.setup import Setup


def why_whole(setup: Setup, config: Any) -> str | None:
    """Why the rows of an update stay whole; None where they will be packed.

    What shows once the model is loaded (dropout, sharded weights) is not seen here.

    Args:
        setup: the resolved recipe.
        config: the model's transformers config.

    Raises:
        UncountedError: transformers has no causal language model for this config.
    """
    if setup.engine.RUNS_ITSELF:
        return "this engine has its own update"
    if "packing" not in setup.args.savings:
        return "savings leaves packing out"
    return why_not(config, type(without_weights(config)))


def advise_packing(setup: Setup, config: Any, findings: Findings) -> None:
    """Note why a model's rows stay whole, where it is of a kind that cannot be packed.

    Args:
        setup: the resolved recipe.
        config: the model's transformers config.
        findings: gets the note.
    """
    if setup.engine.RUNS_ITSELF or "packing" not in setup.args.savings:
        return
    try:
        reason = why_whole(setup, config)
    except UncountedError:
        return  # which is said of its memory
    if reason is not None:
        findings.add(
            "an update computes each row with its padding and a prompt of its own, which takes "
            f"longer than where rows can be packed: {reason}",
            serious=False,
        )
