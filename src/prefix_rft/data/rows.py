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

from prefix_rft.data.cells import kind
from prefix_rft.data.files import PLACE, DataError, Row, Source, find_source
from prefix_rft.data.pictures import with_places
from prefix_rft.data.shapes import RowShape, canonical, detect, rename
from prefix_rft.support.errors import UserError

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
        seed: the seed of that choice.

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
        source: the source of the rows.
        reading: how to read them.
        refuse: called with the error of each row that cannot be used; by default it is raised.

    Raises:
        DataError: a row that cannot be used, rows that do not look alike, or no row.
    """
    first: tuple[Row, RowShape, dict[str, Any]] | None = None
    empty = True
    for index, raw in enumerate(source.rows()):
        empty = False
        try:
            if isinstance(raw, DataError):
                raise raw
            row = rename(raw, reading.columns)
            shape = detect(row)
            values = canonical(row, shape, reading.system_prompt)
            first = first or (row, shape, values)
            _alike(row, shape, values, *first)
        except DataError as error:
            if refuse is None:
                raise
            refuse(error)
            continue
        values["demonstration"] = reading.pick(values["demonstration"], index)
        yield row, values
    if empty:
        raise DataError(f"{source.name} has no rows")


def _alike(
    row: Row,
    shape: RowShape,
    values: dict[str, Any],
    first: Row,
    shape_1: RowShape,
    values_1: dict[str, Any],
) -> None:
    if (shape.name, shape.prompt) != (shape_1.name, shape_1.prompt):
        raise row.error(
            f"has the columns of {shape.name} ({', '.join(row.values)}), but row {first.number} "
            f"those of {shape_1.name} ({', '.join(first.values)})"
        )
    if type(values["prompt"]) is not type(values_1["prompt"]):
        raise row.error(
            f"the prompt is {kind(values['prompt'])}, but that of row {first.number} is "
            f"{kind(values_1['prompt'])}",
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

    types = ColumnTypes()
    for batch in batched(found(), BATCH):
        for error in types.add(batch):
            raise error
    schema = types.schema()
    path = _scratch() / f"{len(os.listdir(_scratch()))}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batched(found(), BATCH):
            rows = [
                {**{n: values.get(n) for n in schema.names}, PLACE: row.place}
                for row, values in batch
            ]
            if types.blocks:
                rows = [{**row, "prompt": with_places(row["prompt"])} for row in rows]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return Dataset.from_file(str(path))


def batched(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` rows, the last one shorter (itertools has it from Python 3.12 on)."""
    while batch := list(islice(rows, size)):
        yield batch


BLOCKS = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
"""The content of a message with places for pictures."""


def messages_type(content: pa.DataType) -> pa.DataType:
    """The type of a conversation whose messages have this kind of content."""
    return pa.list_(pa.struct([("role", pa.string()), ("content", content)]))


class ColumnTypes:
    """One type for each column, over all rows.

    Attributes:
        types: the types by the columns' names, so far.
        blocks: a message has places for pictures, so that the contents of all are lists of blocks.
    """

    def __init__(self) -> None:
        self.types: dict[str, pa.DataType] = {}
        self.blocks = False

    def schema(self) -> pa.Schema:
        """The columns' types, with the rows' places."""
        return pa.schema([*self.types.items(), (PLACE, pa.string())])

    def add(self, batch: list[tuple[Row, dict[str, Any]]]) -> Iterator[DataError]:
        """Take in some rows; an error for each column whose cells do not go together."""
        for name in dict.fromkeys(n for _, values in batch for n in values):
            cells = [values.get(name) for _, values in batch]
            if name == "demonstration":
                self.types[name] = pa.list_(pa.string())
                continue
            if name == "prompt" and isinstance(cells[0], list):
                messages = [message for prompt in cells for message in prompt or ()]
                self.blocks |= any(not isinstance(m["content"], str) for m in messages)
                self.types[name] = messages_type(BLOCKS if self.blocks else pa.string())
                continue
            column_type = self.types.get(name, pa.null())
            fits = self._join(name, column_type, cells)
            if fits is None:
                yield self._error(name, [row for row, _ in batch], cells, column_type)
            else:
                self.types[name] = fits

    def _error(
        self, name: str, rows: list[Row], cells: list[Any], column_type: pa.DataType
    ) -> DataError:
        """The first cell that does not fit is to blame."""
        low, high = 0, len(cells)  # the first `low` cells fit, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._join(name, column_type, cells[:middle]) is not None
            low, high = (middle, high) if fits else (low, middle)
        cell = cells[low]
        if isinstance(cell, int) and not -(2**63) <= cell < 2**63:
            return rows[low].error("the number is too large: write it as a text", name)
        before = self._join(name, column_type, cells[:low])
        return rows[low].error(
            f"holds {kind(cell)}, which does not go with the values of the rows before "
            f"({before}): write all of them alike",
            name,
        )

    @staticmethod
    def _join(name: str, column_type: pa.DataType, cells: list[Any]) -> pa.DataType | None:
        try:
            new = pa.array(cells).type
            fields = [pa.schema([("x", column_type)]), pa.schema([("x", new)])]
            joined = pa.unify_schemas(fields, promote_options="permissive").field("x").type
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            return None
        numbers = {type(c) for c in cells if c is not None} | (
            {int} if column_type == pa.int64() else set()
        )
        if name == "answer" and joined == pa.float64() and int in numbers:
            return None  # 2 would become 2.0, which is another text
        return joined


_folder: Path | None = None


def _scratch() -> Path:
    """This process's own folder among the datasets on disk; deleted at exit.

    Raises:
        UserError: the datasets' cache cannot be written.
    """
    global _folder
    if _folder is None:
        cache = Path(HF_DATASETS_CACHE)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _folder = Path(tempfile.mkdtemp(prefix="prefix-rft-", dir=cache))
        except OSError as error:
            raise UserError(
                f"the cache of datasets '{cache}' cannot be written: {error.strerror}; let "
                "HF_DATASETS_CACHE (or HF_HOME) name a folder that can"
            ) from error
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    return _folder
