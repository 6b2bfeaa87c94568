"""One arm of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.compare.collection import Collection


@dataclass(frozen=True)
class ControlOf:
    """Whose control an arm is: the same in all but what the teachers are shown.

    Attributes:
        of: the arm's name.
        kind: what stands in place of the context, one of ``core.teacher.CONTROLS``.
        without: what the teachers are not shown, in words.
    """

    of: str
    kind: str
    without: str


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: ``group/name`` or ``name``; arms of a group stand together in tables.
        keys: recipe keys that differ, dots reach into mappings; ``~key`` takes a key away.
        start: the arm whose trained model of the same seed it starts from.
        match: the arm whose total compute it is to match by its number of steps, that of ``start``
            included; its steps must cost what those of that arm cost.
        sweep: one key and the values to choose from, on validation rows, at the first seed.
        collect: own right answers of the model that it starts from, sampled at each seed before it
            trains, which are then its demonstrations; None trains on the rows as they are.
        rows: a file in the comparison's folder that it trains on in place of its ``train_data``.
        control: the arm whose control it is, and how; None where it is none.
        lacks: controls that were asked for and that it cannot have, and why.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    match: str | None = None
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    collect: Collection | None = None
    rows: str | None = None
    control: ControlOf | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The part of the name before its slash; empty where there is none."""
        return self.name.rpartition("/")[0]

    @property
    def place(self) -> str:
        """Its name as a path: a colon is no part of one everywhere."""
        return self.name.replace(": ", "=")


def overrides_of(keys: Mapping[str, Any]) -> list[str]:
    """The keys as ``prefix-rft train`` takes them."""
    return [k if k.startswith("~") else f"{k}={json.dumps(v)}" for k, v in keys.items()]
