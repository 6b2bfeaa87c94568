"""Everything that a report needs of a run, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.report.collect import Collected, collect
from prefix_rft.report.curves import Run, series_of
from prefix_rft.report.evaluation import Evaluated
from prefix_rft.runs.numbers import DAMAGE
from prefix_rft.runs.reader import RunFolder, damaged
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Read:
    """A run with its name in the report and what was read of it."""

    label: str
    folder: RunFolder
    recipe: dict[str, Any]
    environment: dict[str, Any]
    evaluations: list[Evaluated]
    rollouts: Collected
    series: Run


def labels(folders: Sequence[RunFolder]) -> list[str]:
    """Names of runs, with the folder above where two have the same, else as they were given."""
    for name_of in (
        lambda f: f.name,
        lambda f: str(Path(*f.path.resolve().parts[-2:])),
        lambda f: str(f.path),
    ):
        names = [name_of(f) for f in folders]
        if len(set(names)) == len(names):
            return names
    raise UserError("two of the runs are the same folder; give each run once")


def read(folder: RunFolder, label: str, colour: int) -> Read:
    """Read a run.

    Raises:
        UserError: a file is damaged.
    """
    rollouts = collect(folder)
    try:
        series = series_of(folder.metrics())
    except DAMAGE as error:
        raise damaged(folder.path / "metrics.jsonl", error) from error
    environment: Any = folder.environment()
    if not isinstance(environment, dict):
        path = folder.path / "environment.json"
        raise UserError(f"'{path}' is damaged: it must be a mapping")
    # Under a metric's name, so that they share the plots of metrics.
    lengths = {f"{origin}/completion_length": p for origin, p in rollouts.lengths.items()}
    return Read(
        label=label,
        folder=folder,
        recipe=folder.recipe(),
        environment=environment,
        evaluations=[Evaluated(label, colour, k, v) for k, v in folder.evaluations().items()],
        rollouts=rollouts,
        series=(label, {**series, **lengths}),
    )
