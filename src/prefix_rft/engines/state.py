"""What a method remembers from step to step: kept with the trainer, saved with each checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from prefix_rft.core import Method
from prefix_rft.core.planner import Group, Planner, Record, Starts
from prefix_rft.core.prefix import generator
from prefix_rft.core.schedules import Following
from prefix_rft.core.store import Own, Store, Trace, bounded, chosen, merged
from prefix_rft.data.demonstrations import ASKED, IDS
from prefix_rft.data.pictures import IMAGE, IMAGES
from prefix_rft.engines.traces import load_traces, save_traces
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

FILE = "method_state.json"


@dataclass
class MethodState:
    """The same on every process.

    Attributes:
        method: the method whose memory it is.
        parameter_mask: the options of the run's mask.
        dataset: hash of the rows, which decide what a step is made of.
        examples: what the planner or the contrast remembers of each example.
        shared: what the planner remembers of all.
        waiting: examples, and which demonstration of each, that wait for a step of imitation.
        stage: the stage of the reference policy.
        traces: own rollouts of each example that are kept to start from.
        followed: the last values of the metrics that coefficients follow, by the name of the
            stream.
    """

    method: str = ""
    parameter_mask: dict[str, Any] | None = None
    dataset: str | None = None
    examples: dict[int, dict[str, float]] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    stage: int = 0
    traces: dict[int, tuple[Trace, ...]] = field(default_factory=dict)
    followed: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def follow(self, method: Method, metrics: Mapping[str, float]) -> None:
        """Take over the metrics of a step that coefficients follow.

        Args:
            method: the method with its streams.
            metrics: those of the step, the same on every process.
        """
        for stream in method.streams:
            follows = stream.coefficient
            if isinstance(follows, Following) and follows.metric in metrics:
                seen = self.followed.get(stream.name, ())
                self.followed[stream.name] = follows.after(seen, metrics[follows.metric])

    def remember(self, updates: Mapping[int, Record]) -> None:
        """Take over what is now known of some examples."""
        self.examples |= {k: dict(v) for k, v in updates.items() if v}

    def learn(
        self,
        planner: Planner,
        asked: Group,
        starts: Starts,
        rewards: Sequence[float],
        replaced: Sequence[bool],
    ) -> None:
        """Tell the planner how a group went, as it was asked about it.

        Args:
            planner: the planner.
            asked: the group as it was planned.
            starts: where its rows had started when they were sampled.
            rewards: the rewards of its rows, NaN where there is none.
            replaced: rows in whose place a demonstration was put; its reward says nothing about
                them.
        """
        group = replace(asked, own=self.examples.get(asked.example, {}), shared=self.shared)
        own_rewards = [math.nan if r else x for x, r in zip(rewards, replaced, strict=True)]
        own, shared = planner.learn(group, starts, own_rewards)
        self.remember({asked.example: own})
        self.shared = dict(shared)

    def keep(self, store: Store, group: Group, own: Sequence[Own]) -> None:
        """Keep of a group's own rollouts what its store wants.

        Args:
            store: what is kept.
            group: the group as it was planned.
            own: those that were sampled from the prompt and graded, in the order of the group's
                rows, the same on every process.
        """
        rng = generator(group.seed, group.step, group.example, -2)
        if new := chosen(store, own, group.step, rng):
            before = self.traces.get(group.example, ())
            self.traces[group.example] = merged(store, before, new)

    def bound(self, store: Store) -> None:
        """Let go of the oldest own rollouts beyond what the store holds."""
        self.traces = bounded(store, self.traces)

    def save(self, folder: Path) -> None:
        """Write ``method_state.json``, and own rollouts where there are any."""
        data = {**vars(self), "examples": {str(k): v for k, v in self.examples.items()}}
        del data["traces"]
        if self.traces:
            data["own_rollouts"] = sum(map(len, self.traces.values()))
            save_traces(folder, self.traces)
        write_text(folder / FILE, json.dumps(data) + "\n")

    def load(self, folder: Path) -> None:
        """Take over what :meth:`save` wrote, see :meth:`read`."""
        vars(self).update(vars(self.read(folder)))

    def read(self, folder: Path) -> MethodState:
        """What :meth:`save` wrote, if it is of the same method, mask and rows.

        Raises:
            UserError: the checkpoint has none, it is damaged, or of another method, parameter mask
                or dataset.
        """
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"checkpoint '{folder}' has no {FILE}: it is not one of this trainer's")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            read = MethodState(
                data["method"],
                data["parameter_mask"],
                data["dataset"],
                {int(k): dict(v) for k, v in data["examples"].items()},
                dict(data["shared"]),
                [(int(e), int(d)) for e, d in data["waiting"]],
                int(data["stage"]),
                load_traces(folder) if data.get("own_rollouts") else {},
                {k: tuple(map(float, v)) for k, v in data.get("followed", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
        if read.method != self.method:
            raise UserError(
                f"checkpoint '{folder}' is of method '{read.method}', not of '{self.method}'"
            )
        if read.parameter_mask != self.parameter_mask:
            before = f"with parameter_mask {read.parameter_mask}" if read.parameter_mask else ""
            raise UserError(
                f"checkpoint '{folder}' was made {before or 'without a mask'}, and this run asks "
                f"for {self.parameter_mask}: resume with what the run began with"
            )
        if read.dataset != self.dataset:
            raise UserError(
                f"checkpoint '{folder}' was made with other rows: resume with those that the run "
                "began with, or begin a new run from its model"
            )
        return read


def hash_of_rows(rows: Any) -> str | None:
    """A hash of prompts and demonstrations, or of the ids of imitation, in their order.

    Of a picture in a file it is the file's name, without its folder. None for a stream.
    """
    if not isinstance(rows, Dataset):
        return None
    digest = hashlib.sha256()
    asked = [ASKED + n for n in ("prompt", IMAGE, IMAGES)]
    known = ("prompt", IDS, "input_ids", "labels", IMAGE, IMAGES, *asked)
    names = [n for n in known if n in rows.column_names]
    for table in _parts(rows, names):
        for name in names:
            if name.removeprefix(ASKED) in (IMAGE, IMAGES):
                digest.update(repr(_files(table[name].to_pylist())).encode())
            else:
                _add(digest, table[name].combine_chunks())
    return digest.hexdigest()


def _files(cell: Any) -> Any:
    """Pictures as they are, those in files by the names of these."""
    if isinstance(cell, list):
        return [_files(one) for one in cell]
    if isinstance(cell, dict) and cell.get("bytes") is None:
        cell = cell.get("path")
    return Path(cell).name if isinstance(cell, str) else cell


def hash_of_columns(rows: Any, names: Sequence[str]) -> dict[str, str]:
    """A hash of the values of each of these columns, in their order; none for a stream."""
    if not isinstance(rows, Dataset) or not names:
        return {}
    digests = {name: hashlib.sha256() for name in names}
    for table in _parts(rows, names):
        for name, digest in digests.items():
            _add(digest, table[name].combine_chunks())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _parts(rows: Dataset, names: Sequence[str]) -> Any:
    return rows.select_columns(list(names)).with_format("arrow").iter(1000)


def _add(digest: Any, column: Any) -> None:
    while isinstance(column, (pa.ListArray, pa.LargeListArray)):
        digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
        column = column.flatten()
    numeric = pa.types.is_integer(column.type)
    cells = column.to_numpy(zero_copy_only=False).tobytes() if numeric else None
    digest.update(repr(column.to_pylist()).encode() if cells is None else cells)
