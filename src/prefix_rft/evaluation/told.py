"""Prompts that tell a model more than a row asks: its gold answer, or a demonstration.

The model is asked for a demonstration of its own (STaR's rationalisation, arXiv 2203.14465).
Graders and whoever is trained on it see the row's own prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from prefix_rft.core.hint import in_last_text
from prefix_rft.core.teacher import Teacher
from prefix_rft.data.files import PLACE
from prefix_rft.data.pictures import IMAGE, IMAGES, asked
from prefix_rft.support.errors import UserError, choose

TOLD = "prefix_rft_told"
"""The column of such prompts; no grader sees it, like all columns of ours."""


def with_told(rows: Dataset, teacher: Teacher) -> Dataset:
    """The rows that have something to tell, with their prompts for a model in column ``TOLD``.

    Args:
        rows: rows with ``prompt``.
        teacher: a teacher whose context is a column, and its template.

    Raises:
        UserError: the rows do not have the column, or it holds nothing that can be written.
    """
    places, column = told_places(rows, teacher), teacher.column or ""

    def write(row: dict[str, Any]) -> dict[str, Any]:
        text = _text(row[column], column) or ""
        return {TOLD: in_last_text(row["prompt"], lambda prompt: teacher.write(prompt, text))}

    features = rows.features.copy()
    features[TOLD] = features["prompt"]
    return rows.select(places).map(write, features=features)


def told_places(rows: Dataset, teacher: Teacher) -> list[int]:
    """Which rows have something to tell.

    Args:
        rows: rows with ``prompt``.
        teacher: a teacher whose context is a column.

    Raises:
        UserError: the rows do not have the column, or it holds nothing that can be written.
    """
    column = teacher.column or ""
    choose("column to tell", column, [n for n in rows.column_names if n not in ("prompt", PLACE)])
    cells: Any = rows.select_columns([column])
    places = [i for i, row in enumerate(cells) if _text(row[column], column)]
    if not places:
        raise UserError(f"column '{column}' is empty in all {len(rows)} rows: nothing can be told")
    return places


def _text(cell: Any, column: str) -> str | None:
    """What is told of a cell: of several texts, such as demonstrations, the first."""
    value = (cell[0] if cell else None) if isinstance(cell, list) else cell
    if isinstance(value, (Mapping, list)):
        raise UserError(
            f"column '{column}' holds lists or mappings, which cannot be told: name one of texts "
            "or numbers"
        )
    return None if value is None else str(value)


def prompts_of(rows: Dataset) -> Iterator[Any]:
    """The prompts that a model is given, with their pictures, read one by one."""
    names = [n for n in ("prompt", TOLD, IMAGE, IMAGES, PLACE) if n in rows.column_names]
    row: Any
    for row in rows.select_columns(names):
        yield asked({**row, "prompt": row.pop(TOLD)} if TOLD in row else row)
