"""Recipes and environments of runs side by side, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefix_rft.runs.reader import flatten

LONGEST_VALUE = 300


@dataclass(frozen=True)
class Setting:
    """A key with its value in each run; None where a run does not have it."""

    key: str
    values: Sequence[str | None]

    @property
    def differs(self) -> bool:
        """Whether the runs do not agree on it."""
        return len(set(self.values)) > 1


def side_by_side(runs: Sequence[Mapping[Any, Any]]) -> list[Setting]:
    """All keys in the order of the first run that has them."""
    flat = [flatten(run) for run in runs]
    keys = dict.fromkeys(key for run in flat for key in run)
    return [Setting(key, [run.get(key) for run in flat]) for key in keys]
