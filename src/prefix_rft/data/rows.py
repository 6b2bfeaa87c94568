"""From data as it stands to a memory-mapped dataset of prompts, demonstrations and answers."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.config import HF_DATASETS_CACHE

from prefix_rft.data.files import DataError, Row, Source, find_source
from prefix_rft.data.shapes import Shape, canonical, detect, kind, rename
from prefix_rft.errors import UserError

BATCH = 256


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        columns: ``{name known to the library: name in the data}``; dots reach into nested columns.
        system_prompt: first message of conversations that have none of their own.
        max_demonstrations: keep the first N of a row.
        demonstration_fraction: share of rows that keep their demonstrations; which ones depends on
            ``seed`` and the row's place alone.
        seed: of that choice.

    Raises:
        UserError: a value out of range.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_demonstrations: int | None = None
    demonstration_fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_demonstrations is not None and self.max_demonstrations < 1:
            raise UserError(f"max_demonstrations must be at least 1, got {self.max_demonstrations}")
        if not 0 <= self.demonstration_fraction <= 1:
            fraction = self.demonstration_fraction
            raise UserError(f"demonstration_fraction must be in [0, 1], got {fraction}")

    def pick(self, demonstrations: list[str], index: int) -> list[str]:
        """The demonstrations that the ``index``-th row keeps."""
        if self.demonstration_fraction < 1:
            rng = random.Random(f"demonstration_fraction:{self.seed}:{index}")
            if rng.random() >= self.demonstration_fraction:
                return []
        return demonstrations[: self.max_demonstrations]


def read_rows(
    source: Source, reading: Reading, refuse: Callable[[DataError], None] | None = None
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row as it stands, and as the library knows it.

    Args:
        source: of the rows.
        reading: how to read them.
        refuse: called with the error of each row that cannot be used; by default it is raised.

    Raises:
        DataError: a row that cannot be used, rows that do not look alike, or no row.
    """
    first: tuple[Row, Shape, dict[str, Any]] | None = None
    empty = True
    for index, raw in enumerate(source.rows()):
        empty = False
        try:
            if isinstance(raw, DataError):
                raise raw
            row = rename(raw, reading.columns)
            shape = detect(row)
            found = canonical(row, shape, reading.system_prompt)
            first = first or (row, shape, found)
            _alike(row, shape, found, *first)
        except DataError as error:
            if refuse is None:
                raise
            refuse(error)
            continue
        found["demonstration"] = reading.pick(found["demonstration"], index)
        yield row, found
    if empty:
        raise DataError(f"{source.name} has no rows")


def _alike(
    row: Row,
    shape: Shape,
    found: dict[str, Any],
    first: Row,
    shape_1: Shape,
    found_1: dict[str, Any],
) -> None:
    if (shape.name, shape.prompt) != (shape_1.name, shape_1.prompt):
        raise row.error(
            f"has the columns of {shape.name} ({', '.join(row.values)}), but row {first.number} "
            f"those of {shape_1.name} ({', '.join(first.values)})"
        )
    if type(found["prompt"]) is not type(found_1["prompt"]):
        raise row.error(
            f"the prompt is {kind(found['prompt'])}, but that of row {first.number} is "
            f"{kind(found_1['prompt'])}",
            shape.prompt,
        )


def load_rows(
    data: str | os.PathLike[str] | Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
    folder: Path = Path(),
    reading: Reading | None = None,
    limit: int | None = None,
) -> Dataset:
    """Rows with ``prompt``, ``demonstration`` (list of texts), ``answer`` and all other columns.

    The rows are checked, then written to a file that is mapped into memory and deleted at exit.

    Args:
        data: a file, folder or dataset, see :func:`prefix_rft.data.files.find_source`.
        columns: short for ``Reading(columns=...)``.
        folder: what relative paths are relative to.
        reading: how to read.
        limit: the first N rows only.

    Raises:
        DataError: a row that cannot be used; the message says which.
    """
    source = find_source(data, folder)
    reading = reading or Reading(columns or {})

    def found() -> Iterator[tuple[Row, dict[str, Any]]]:
        return islice(read_rows(source, reading), limit)

    schema = _schema(found())
    path = _scratch() / f"{len(os.listdir(_scratch()))}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batched(found(), BATCH):
            rows = [{name: values.get(name) for name in schema.names} for _, values in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return Dataset.from_file(str(path))


def batched(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` rows, the last one shorter (itertools has it from Python 3.12 on)."""
    while batch := list(islice(rows, size)):
        yield batch


FIXED = {
    "demonstration": pa.list_(pa.string()),
    "prompt": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
}


def _schema(rows: Iterator[tuple[Row, dict[str, Any]]]) -> pa.Schema:
    """One type for each column, over all rows.

    Raises:
        DataError: a column of several kinds of values.
    """
    types: dict[str, pa.DataType] = {}
    for batch in batched(rows, BATCH):
        for name in dict.fromkeys(n for _, values in batch for n in values):
            cells = [values.get(name) for _, values in batch]
            if name == "demonstration" or (name == "prompt" and isinstance(cells[0], list)):
                types[name] = FIXED[name]
                continue
            types[name] = _type(name, batch, cells, types.get(name, pa.null()))
    return pa.schema(list(types.items()))


def _type(name: str, batch: Any, cells: list[Any], known: pa.DataType) -> pa.DataType:
    """The column's type with these cells too; the first cell that does not fit is an error."""
    fits = _join(known, cells)
    if fits is not None:
        return fits
    low, high = 0, len(cells)  # the first `low` cells fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _join(known, cells[:middle]) is not None else (low, middle)
    row: Row = batch[low][0]
    raise row.error(
        f"holds {kind(cells[low])} that does not go with the column's type in the rows before "
        f"({_join(known, cells[:low])}): write all of them alike",
        name,
    )


def _join(known: pa.DataType, cells: list[Any]) -> pa.DataType | None:
    try:
        new = pa.array(cells).type
        fields = [pa.schema([("x", known)]), pa.schema([("x", new)])]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None


_folder: Path | None = None


def _scratch() -> Path:
    """This process's own folder among the datasets on disk; deleted at exit."""
    global _folder
    if _folder is None:
        cache = Path(HF_DATASETS_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        _folder = Path(tempfile.mkdtemp(prefix="prefix-rft-", dir=cache))
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    return _folder
