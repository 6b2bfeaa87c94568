"""What is known of the start model already: the short form of ``prefix-rft advise``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from prefix_rft.engines.fingerprint import fingerprint
from prefix_rft.engines.setup import Setup
from prefix_rft.support.console import say

PLACES = ("advice/*/*/result.json", "evals/*/result.json")
"""Where ``advise`` and ``eval`` leave results by default."""
HARDLY = 1.0


class Known(NamedTuple):
    """An evaluation of the start model on rows of the recipe, at the temperature of training."""

    success: float
    samples: int
    where: str


def find_known(setup: Setup, folder: Path = Path()) -> Known | None:
    """The evaluation of the recipe's start model with the most samples; None where there is none.

    Args:
        setup: the resolved recipe.
        folder: where the commands are run.
    """
    results, own = list(_results(folder)), setup.recipe
    if not results:  # a hash of many weights takes its time
        return None
    model = fingerprint(own.model_source())
    data = [json.loads(json.dumps(d, default=str)) for d in (own.train_data, own.eval_data) if d]
    known = [
        Known(row["avg"]["mean"], row["samples"] * row["problems"], f"{path.parent}, {row['set']}")
        for path, result in results
        for row in result["results"]
        if result["settings"]["models"].get(row["model"]) == model
        and row["temperature"] == setup.args.temperature
        and result["settings"]["sets"][row["set"]]["data"] in data
        and result["settings"]["sets"][row["set"]]["reward"] == own.reward
        and row["avg"] is not None
    ]
    return max(known, key=lambda k: k.samples, default=None)


def _results(folder: Path) -> Iterator[tuple[Path, Any]]:
    for place in PLACES:
        for path in sorted(folder.glob(place)):
            yield path.relative_to(folder), json.loads(path.read_text(encoding="utf-8"))


def show_start(console: Console, setup: Setup) -> None:
    """The solved rows that a step can expect, where the start model was evaluated."""
    if not setup.method.samples or (known := find_known(setup)) is None:
        return
    rows = setup.plan.rows
    solved = rows * known.success
    words = (
        f"lambda: of {rows} rows a step the start model solves {solved:.2g} without a prefix "
        f"({known.where}, {known.samples:,} samples)"
    )
    if solved < HARDLY:
        words += ": RL from the prompt alone will hardly start; prefix-rft advise says more"
    say(console, words)
