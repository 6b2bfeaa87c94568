"""The run of a comparison that samples own right answers, which its arm then trains on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.compare.arm import overrides_of
from prefix_rft.compare.collection import ROWS
from prefix_rft.compare.costs import collecting_costs, computing_weights
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.collect import OwnAnswers, collect
from prefix_rft.evaluation.demonstrate import Demonstrations
from prefix_rft.evaluation.samples import Request
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.display import Display, by_job
from prefix_rft.support.writing import write_text


def collect_rows(job: Mapping[str, Any], record: Path) -> None:
    """Collect as the job says, from where an earlier process was interrupted.

    Args:
        job: the order of a collecting run.
        record: the file to leave when all is done.

    Raises:
        UserError: nothing was right, or the recipe cannot be used.
    """
    quiet()
    asked, folder, keys = job["collect"], Path(job["folder"]), overrides_of(job["keys"])
    setup = configure(job["recipe"], keys)
    setup.close()
    model = setup.recipe.model_source()
    request = Request(asked["samples"], 1.0, seed=job["seed"], batch_size=job["batch_size"])
    started = time.monotonic()
    with Display(Console(highlight=False)) as display:
        found = collect(
            job["recipe"], keys, folder / ROWS, request, asked["keep"], None, by_job(display)
        )
    left = record_of(found, model, time.monotonic() - started)
    write_text(record, json.dumps({"spec": job["spec"], **left, "sets": {}}) + "\n")


def record_of(found: OwnAnswers | Demonstrations, model: str, seconds: float) -> dict[str, Any]:
    """What was collected and what it has cost, on which machine, as plain data.

    Args:
        found: what was collected.
        model: the folder or the name of the model that was sampled.
        seconds: how long it took.
    """
    weights = computing_weights(model)
    costs = collecting_costs(found.sampled, found.prefilled, weights, seconds)
    return {
        "costs": asdict(costs),
        "found": asdict(found),
        "machine": {**describe_machine(), "git": git_state()},
    }
