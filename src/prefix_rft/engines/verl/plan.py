"""Where the rollouts of a prompt start, as it travels with the prompt to the samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefix_rft.core import Method
from prefix_rft.core.planner import Group, Start, Starts
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

    def plain(self) -> dict[str, Any]:
        """As plain data: verl's queue makes dicts of dataclasses on the way."""
        return {
            "demonstrations": [[i, ids.tobytes()] for i, ids in self.demonstrations.items()],
            "starts": [None if s is None else [s.index, s.length, s.ratio] for s in self.starts],
            "asked": None if self.asked is None else asdict(self.asked),
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Plan:
        """From what :meth:`plain` gave."""
        asked = plain["asked"]
        if asked is not None:
            bounds = tuple(tuple(b) for b in asked["boundaries"])
            asked = Group(**{**asked, "lengths": tuple(asked["lengths"]), "boundaries": bounds})
        return cls(
            {int(i): np.frombuffer(ids, np.int32) for i, ids in plain["demonstrations"]},
            tuple(None if s is None else Start(*s) for s in plain["starts"]),
            asked,
        )

    def known(self, rollout: int) -> tuple[list[int], bool]:
        """The ids that a rollout starts from, and whether they are a whole demonstration."""
        start = self.starts[rollout]
        if start is None or not start.length:
            return [], False
        ids = self.demonstrations[start.index]
        return ids[: start.length].tolist(), start.length == len(ids)
