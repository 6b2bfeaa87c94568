"""Raw rows, one at a time and with their place, from files, folders and datasets.

Files are read here and not by ``datasets``, which turns texts that look like dates into dates and
cannot say which row is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from prefix_rft.errors import UserError, check_types, refuse_unknown

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
PARQUET_ROWS = 256
DATASET_KEYS = ("path", "name", "split", "revision", "data_dir")


class DataError(UserError):
    """A data file or a row cannot be used; the message says which, where, and the fix."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in the data, and where: ``number`` counts from 1 (lines in a jsonl)."""

    source: str
    number: int
    values: dict[str, Any]

    def error(self, message: str, column: str | None = None) -> DataError:
        """The error ``message`` at this row."""
        where = f"{self.source}, row {self.number}"
        return DataError(
            f"{where}, column '{column}': {message}" if column else f"{where}: {message}"
        )


@dataclass(frozen=True)
class Source:
    """Where rows come from: files, or the arguments of ``datasets.load_dataset``."""

    name: str
    files: tuple[Path, ...] = ()
    dataset: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            DataError: something cannot be read.
        """
        if self.dataset:
            yield from _from_dataset(self.name, self.dataset)
        for file in self.files:
            yield from READERS[file.suffix](file)


def find_source(data: str | os.PathLike[str] | Mapping[str, Any], folder: Path = Path()) -> Source:
    """The source behind a recipe's ``train_data`` or ``eval_data``.

    Args:
        data: a jsonl, json or parquet file; a folder of such files; the name of a dataset; or a
            mapping with ``path``, and ``name``, ``split``, ``revision`` as for ``load_dataset``.
        folder: what relative paths are relative to.

    Raises:
        DataError: there is nothing there.
    """
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
    known: dict[str, str] = dict.fromkeys(DATASET_KEYS, "str")
    refuse_unknown("key of a dataset", arguments, known)
    check_types("key of a dataset", arguments, known)
    if "path" not in arguments:
        raise DataError("a dataset needs the key 'path'")
    local = folder / arguments["path"]
    found = {
        "split": "train",
        **arguments,
        "path": str(local if local.is_dir() else arguments["path"]),
    }
    return Source(f"dataset '{arguments['path']}'", dataset=found)


def _from_dataset(name: str, arguments: Mapping[str, Any]) -> Iterator[Row]:
    try:
        rows = load_dataset(**arguments)
    except Exception as error:  # hub, network and builder errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} cannot be loaded, and is no file: {reason}") from error
    assert isinstance(rows, Dataset)  # noqa: S101  (a split is always given)
    for number, values in enumerate(rows, 1):
        yield Row(name, number, dict(values))


def _jsonl(path: Path) -> Iterator[Row]:
    source = f"data file '{path}'"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row(source, number, _object(line, Row(source, number, {}), number == 1))


def _object(line: bytes, row: Row, first: bool) -> dict[str, Any]:
    values = _parse(line, row, first)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise row.error(f"a row is an object with columns, got {kind}")
    return values


def _parse(data: bytes, row: Row, first: bool = True) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise row.error(
            f"not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start + 1}): "
            "save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise row.error(f"not valid JSON: {error.msg} at position {error.pos + 1}") from error
    except RecursionError:
        raise row.error("not usable JSON: nested too deeply") from None


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object per line whatever the file's name says."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _jsonl(path)
        return
    source = f"data file '{path}'"
    values = _parse(path.read_bytes(), Row(source, 1, {}))
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise Row(source, number, {}).error(f"a row is an object with columns, got {kind}")
        yield Row(source, number, value)


def _parquet(path: Path) -> Iterator[Row]:
    source, number = f"data file '{path}'", 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(source, number, values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source} cannot be read after row {number}: {reason}") from error


READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
