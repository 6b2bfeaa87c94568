"""Raw rows, one at a time and with their place, from files, folders and datasets.

Files are read here and not by ``datasets``, which turns texts that look like dates into dates and
cannot say which row is wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Image, List, load_dataset

from prefix_rft.data.puzzles import Puzzles
from prefix_rft.support.errors import UserError, check_types, refuse_unknown
from prefix_rft.support.gym import NAME as GYM

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
PARQUET_ROWS = 256
BOM = b"\xef\xbb\xbf"
DEEPEST = 32
SURROGATE = re.compile("[\ud800-\udfff]")
PLACE = "prefix_rft_place"
"""Column with the file and number of each row; reward functions do not see it."""
DATASET_KEYS = ("path", "name", "split", "revision", "data_dir")


class DataError(UserError):
    """A data file or a row cannot be used; the message says which, where, and the fix.

    Attributes:
        row: the row that is to blame, if one is.
        what: the message without the place.
    """

    def __init__(self, message: str, row: Row | None = None, what: str = "") -> None:
        super().__init__(message)
        self.row = row
        self.what = what or message


@dataclass(frozen=True)
class Row:
    """One row as it stands in the data, and where: ``number`` counts from 1 (lines in a jsonl).

    Paths in it are relative to ``folder``.
    """

    source: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def place(self) -> str:
        """``data file 'train.jsonl', row 3``."""
        return f"{self.source}, row {self.number}"

    def error(self, message: str, column: str | None = None) -> DataError:
        """The error ``message`` at this row."""
        what = f"column '{column}': {message}" if column else message
        separator = ", " if what.startswith("column '") else ": "
        return DataError(f"{self.place}{separator}{what}", self, what)


@dataclass(frozen=True)
class Source:
    """Where rows come from: files, the arguments of ``datasets.load_dataset``, or puzzles."""

    name: str
    files: tuple[Path, ...] = ()
    dataset: Mapping[str, Any] = field(default_factory=dict)
    puzzles: Puzzles | None = None

    def rows(self) -> Iterator[Row | DataError]:
        """All rows, in order; an error in the place of one that cannot be read.

        Raises:
            DataError: nothing more can be read.
        """
        if self.dataset:
            yield from _from_dataset(self.name, self.dataset)
        if self.puzzles:
            for number, values in enumerate(self.puzzles.rows(), 1):
                yield Row(self.name, number, values)
        for file in self.files:
            yield from READERS[file.suffix](file)


def find_source(data: str | os.PathLike[str] | Mapping[str, Any], folder: Path = Path()) -> Source:
    """The source behind a recipe's ``train_data`` or ``eval_data``.

    Args:
        data: a jsonl, json or parquet file; a folder of such files; the name of a dataset; or a
            mapping with ``path``, and ``name``, ``split``, ``revision`` as for ``load_dataset``,
            or with ``reasoning_gym``, see :meth:`prefix_rft.data.puzzles.Puzzles.of`.
        folder: what relative paths are relative to.

    Raises:
        DataError: there is nothing there.
    """
    if isinstance(data, Mapping) and GYM in data:
        puzzles = Puzzles.of(data)
        return Source(puzzles.name, puzzles=puzzles)
    if isinstance(data, Mapping):
        return _dataset(data, folder)
    path = folder / data
    if path.is_dir():
        return Source(f"folder '{path}'", _files_in(path))
    if path.suffix in SUFFIXES or path.exists():
        if not path.is_file():
            raise DataError(f"data file '{path}' does not exist")
        if path.suffix not in SUFFIXES:
            raise DataError(f"data file '{path}' must end in one of {', '.join(SUFFIXES)}")
        if path.stat().st_size == 0:
            raise DataError(f"data file '{path}' is empty")
        return Source(f"data file '{path}'", (path,))
    if path.is_absolute() or str(data).count("/") != 1 or path.suffix:
        raise DataError(
            f"data '{path}' does not exist: give a file that ends in one of {', '.join(SUFFIXES)}, "
            "a folder of them, or a dataset as owner/name"
        )
    return _dataset({"path": str(data)}, folder)


def raw_rows(source: Source) -> Iterator[dict[str, Any]]:
    """The columns of all rows.

    Raises:
        DataError: a row that cannot be read.
    """
    for row in source.rows():
        if isinstance(row, DataError):
            raise row
        yield row.values


def _files_in(folder: Path) -> tuple[Path, ...]:
    files = tuple(sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in SUFFIXES))
    if not files:
        raise DataError(f"folder '{folder}' holds no file that ends in {', '.join(SUFFIXES)}")
    splits = sorted({s for f in files for s in SPLITS if f.stem.lower().startswith(s)})
    if len(splits) > 1:
        raise DataError(
            f"folder '{folder}' holds several splits ({', '.join(splits)}): name one file, "
            "or a folder with one split"
        )
    empty = next((f for f in files if f.stat().st_size == 0), None)
    if empty:
        raise DataError(f"data file '{empty}' is empty")
    return files


def _dataset(arguments: Mapping[str, Any], folder: Path) -> Source:
    kinds: dict[str, str] = dict.fromkeys(DATASET_KEYS, "str")
    refuse_unknown("key of a dataset", arguments, kinds)
    check_types("key of a dataset", arguments, kinds)
    if "path" not in arguments:
        raise DataError("a dataset needs the key 'path'")
    local = folder / arguments["path"]
    dataset = {
        "split": "train",
        **arguments,
        "path": str(local if local.is_dir() else arguments["path"]),
    }
    return Source(f"dataset '{arguments['path']}'", dataset=dataset)


def _from_dataset(name: str, arguments: Mapping[str, Any]) -> Iterator[Row]:
    try:
        rows = load_dataset(**arguments)
    except Exception as error:  # hub, network and builder errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} cannot be loaded, and is no file: {reason}") from error
    assert isinstance(rows, Dataset)  # noqa: S101  (a split is always given)
    rows = undecoded(rows)
    for number, values in enumerate(rows, 1):
        yield Row(name, number, dict(values))


def undecoded(rows: Dataset) -> Dataset:
    """The rows with pictures as the bytes that they are on disk; see ``data.pictures``."""
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(name, List(Image(decode=False)))
    return rows


def _jsonl(path: Path) -> Iterator[Row | DataError]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                row = Row(f"data file '{path}'", number, folder=path.parent)
                try:
                    yield _with_columns(row, _parse(line, row.error))
                except DataError as error:
                    yield error


def _json(path: Path) -> Iterator[Row | DataError]:
    """A list of objects, or one object per line whatever the file's name says."""
    source = f"data file '{path}'"
    data = path.read_bytes().removeprefix(BOM).strip()
    if not data.startswith(b"["):
        first = data.partition(b"\n")[0].strip()
        if data.startswith(b"{") and not first.endswith(b"}"):
            raise DataError(f"{source} is one object, not a list of rows or one row per line")
        yield from _jsonl(path)
        return
    for number, value in enumerate(_parse(data, lambda m: DataError(f"{source}: {m}")), 1):
        try:
            yield _with_columns(Row(source, number, folder=path.parent), value)
        except DataError as error:
            yield error


def _with_columns(row: Row, values: Any) -> Row:
    if not isinstance(values, dict):
        kind = {list: "a list", str: "a text", int: "a number", float: "a number"}
        raise row.error(
            f"a row is an object with columns, got {kind.get(type(values), 'no object')}"
        )
    for column, value in values.items():
        if _depth(value) > DEEPEST:
            raise row.error(f"nested more than {DEEPEST} deep", column)
        if not _is_text(column) or not _is_text(value):
            raise row.error(
                "holds half a character (a lone surrogate): write the whole one", column
            )
    return replace(row, values=values)


def _is_text(value: Any) -> bool:
    """Whether the texts in a value can be written as UTF-8, which JSON escapes do not promise."""
    if isinstance(value, str):
        return value.isascii() or not SURROGATE.search(value)
    if isinstance(value, dict):
        return all(_is_text(k) and _is_text(v) for k, v in value.items())
    return not isinstance(value, list) or all(map(_is_text, value))


def _parse(data: bytes, refuse: Callable[[str], DataError]) -> Any:
    """JSON; ``refuse`` makes the error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for n in names if names.count(n) > 1)
            raise refuse(f"column '{twice}': given twice")
        return mapping

    try:
        value = json.loads(data.decode(), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"at position {error.start + 1}" if line == 1 else f"on line {line}"
        raise refuse(
            f"not UTF-8 (byte 0x{data[error.start]:02x} {where}): save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        where = f"at position {error.pos + 1}" if error.lineno == 1 else f"on line {error.lineno}"
        raise refuse(f"not valid JSON: {error.msg} {where}") from error
    except RecursionError:
        raise refuse("not usable JSON: nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise refuse(f"not usable JSON: {error}") from error
    return value


def _depth(value: Any) -> int:
    """How deep a value is nested, without recursion."""
    depth, level = 0, [value]
    while level:
        inner = [v for v in level if isinstance(v, (dict, list))]
        level = [w for v in inner for w in (v.values() if isinstance(v, dict) else v)]
        depth += bool(inner)
        if depth > DEEPEST + 1:
            break
    return depth


def _parquet(path: Path) -> Iterator[Row | DataError]:
    source, number = f"data file '{path}'", 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = next((n for n in names if names.count(n) > 1), None)
            if twice:
                raise DataError(f"{source} has the column '{twice}' twice")
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for values in _values(batch):
                    number += 1
                    row = Row(source, number)
                    if isinstance(values, UnicodeDecodeError):
                        yield row.error("a text is not UTF-8: write the file anew")
                    else:
                        yield Row(source, number, values, path.parent)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source} cannot be read after row {number}: {reason}") from error


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch; an error in the place of one whose text is no text."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
