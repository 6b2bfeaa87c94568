"""Own rollouts on disk, beside what else a method remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefix_rft.core.store import Trace
from prefix_rft.support.writing import PART, naming, sync

FILE = "own_rollouts.parquet"
COLUMNS = pa.schema(
    {"example": pa.int64(), "solved": pa.bool_(), "step": pa.int64(), "ids": pa.list_(pa.int32())}
)


def save_traces(folder: Path, traces: Mapping[int, Sequence[Trace]]) -> None:
    """Write the rollouts, those of an example in their order.

    Raises:
        UserError: the file cannot be written.
    """
    rows = [
        {"example": example, "solved": t.solved, "step": t.step, "ids": list(t.ids)}
        for example, some in traces.items()
        for t in some
    ]
    path = folder / FILE
    part = path.with_name(FILE + PART)
    with naming(path):
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), part)
        sync(part)
        part.replace(path)


def load_traces(folder: Path) -> dict[int, tuple[Trace, ...]]:
    """What :func:`save_traces` wrote.

    Raises:
        ValueError: the file is damaged, or there is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"there is no {FILE} beside it")
    traces: dict[int, tuple[Trace, ...]] = {}
    for row in pq.read_table(path, schema=COLUMNS).to_pylist():
        trace = Trace(tuple(row["ids"]), row["solved"], row["step"])
        traces[row["example"]] = (*traces.get(row["example"], ()), trace)
    return traces
