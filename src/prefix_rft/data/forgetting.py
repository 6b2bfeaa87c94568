"""A set to forget and a set to retain have no prompt in common."""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset

from prefix_rft.data.files import DataError
from prefix_rft.data.pictures import IMAGE, IMAGES, cells


def refuse_shared(forget: Dataset, retain: Dataset, where: str) -> None:
    """Refuse sets of which one prompt is to be forgotten and retained.

    Args:
        forget: the rows to forget.
        retain: the rows to retain.
        where: what asks for them, for the message.

    Raises:
        DataError: they share a prompt.
    """
    kept = set(_prompts(retain))
    both = [p for p in _prompts(forget) if p in kept]
    if both:
        text = both[0] if len(both[0]) <= 60 else f"{both[0][:57]}..."
        raise DataError(
            f"{where}: {len(both)} of {len(forget)} rows to forget are rows to retain, too, such "
            f"as {text}: take them out of one of the two"
        )


def _prompts(rows: Dataset) -> list[str]:
    """What each row asks, with its pictures: one question of two pictures is two."""
    asked: Any = rows.select_columns([n for n in ("prompt", IMAGE, IMAGES) if n in rows.features])
    return [json.dumps([row["prompt"], *cells(row)], default=repr) for row in asked]
