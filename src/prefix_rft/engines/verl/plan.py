"""Where the rollouts of a prompt start, as it travels with the prompt to the samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefix_rft.core import Method
from prefix_rft.core.planner import Group, Starts
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.plan import Moment, starts_of


@dataclass(frozen=True)
class Plan:
    """The plan of a prompt's group.

    Attributes:
        demonstrations: ids of those that are used, by their index.
        starts: of its rollouts.
        asked: the group, for a planner that learns from it.
    """

    demonstrations: dict[int, np.ndarray]
    starts: Starts
    asked: Group | None = None

    @classmethod
    def of(cls, method: Method, example: Mapping[str, Any], moment: Moment) -> Plan:
        """As the method's planner says."""
        asked = moment.group(method, example)
        starts = starts_of(method, asked)
        used = {s.index for s in starts if s is not None and s.length}
        ids = {i: np.asarray(example[IDS][i], np.int32) for i in used}
        return cls(ids, starts, asked if method.law.remembers else None)

    def known(self, rollout: int) -> tuple[list[int], bool]:
        """The ids that a rollout starts from, and whether they are a whole demonstration."""
        start = self.starts[rollout]
        if start is None or not start.length:
            return [], False
        ids = self.demonstrations[start.index]
        return ids[: start.length].tolist(), start.length == len(ids)
