"""Datasets with plain Python values in their cells, whatever format they have been given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from prefix_rft.data import DataError


def plain_rows(data: Any, name: str) -> Any:
    """The dataset, or each of a mapping of datasets, with Python's own values in its cells.

    A format (``with_format("numpy")``, "torch", "pandas", "arrow", ...) is taken off; columns that
    it hides stay hidden. What is no dataset of Hugging Face's is returned as it is.

    Args:
        data: what the trainer was given.
        name: the argument's name, for messages.

    Raises:
        DataError: rows go through a function each time they are read, so that no row is known.
    """
    if isinstance(data, Mapping):
        return {key: plain_rows(part, f"{name}['{key}']") for key, part in data.items()}
    if isinstance(data, IterableDataset):
        return data.with_format(None)
    if not isinstance(data, Dataset):
        return data
    form = data.format
    if form["type"] == "custom":
        raise DataError(
            f"{name} has a transform (set_transform or with_transform), which makes its rows anew "
            f"each time they are read: give what it makes, by {name}.map(...) without the transform"
        )
    hidden = not form["output_all_columns"] and set(form["columns"]) != set(data.column_names)
    plain = data if form["type"] is None and not hidden else data.with_format(None)
    return plain.select_columns(form["columns"]) if hidden else plain
