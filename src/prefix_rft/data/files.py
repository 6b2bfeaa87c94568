"""Read rows of prompts, demonstrations and whatever the reward wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from prefix_rft.errors import UserError

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class DataError(UserError):
    """A data file or a row cannot be used; the message says which, where, and the fix."""


def load_rows(path: str | Path, columns: Mapping[str, str] | None = None) -> Dataset:
    """Rows of a jsonl, json or parquet file, with a ``prompt`` in every row.

    Args:
        path: the file.
        columns: ``{name wanted by the library: name in the file}`` for files that call ``prompt``
            or ``demonstration`` something else.

    Raises:
        DataError: missing or unreadable file, missing column, a row without prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data file '{path}' does not exist")
    if path.suffix not in FORMATS:
        raise DataError(f"data file '{path}' must end in one of {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise DataError(f"data file '{path}' is empty")
    try:
        rows = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"data file '{path}' cannot be read: {reason}") from error
    for wanted, present in (columns or {}).items():
        if present not in rows.column_names:
            raise DataError(
                f"data file '{path}' has no column '{present}' (wanted as '{wanted}'); "
                f"it has {', '.join(rows.column_names)}"
            )
        if wanted != present and wanted in rows.column_names:
            raise DataError(
                f"data file '{path}' has a column '{wanted}' already, so '{present}' cannot take "
                "its name"
            )
        if wanted != present:
            rows = rows.rename_column(present, wanted)
    if "prompt" not in rows.column_names:
        raise DataError(
            f"data file '{path}' has no column 'prompt'; it has {', '.join(rows.column_names)} "
            "(map one with columns: {prompt: NAME})"
        )
    for number, prompt in enumerate(rows["prompt"]):
        where = f"data file '{path}', row {number + 1}"
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise DataError(f"{where}: the prompt is missing or empty")
        if not isinstance(prompt, (str, list)):
            kind = type(prompt).__name__
            raise DataError(f"{where}: a prompt is a text or a list of messages, not {kind}")
    return rows
