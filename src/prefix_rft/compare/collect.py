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
from prefix_rft.evaluation.collect import collect
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
    weights = computing_weights(setup.recipe.model_source())
    request = Request(asked["samples"], 1.0, seed=job["seed"], batch_size=job["batch_size"])
    started = time.monotonic()
    with Display(Console(highlight=False)) as display:
        found = collect(
            job["recipe"], keys, folder / ROWS, request, asked["keep"], None, by_job(display)
        )
    costs = collecting_costs(found.sampled, found.prefilled, weights, time.monotonic() - started)
    left = {
        "spec": job["spec"],
        "costs": asdict(costs),
        "found": asdict(found),
        "machine": {**describe_machine(), "git": git_state()},
        "sets": {},
    }
    write_text(record, json.dumps(left) + "\n")
