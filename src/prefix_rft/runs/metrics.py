"""``metrics.jsonl`` of a run: one line for every log of the trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import append_text, write_text

SUMMARY = "train_runtime"
"""Only the last line of a run's metrics has this key."""


def cut_metrics(folder: Path, step: int, dry_run: bool = False) -> None:
    """Take out of ``metrics.jsonl`` what a run that goes on from ``step`` writes anew.

    These are the lines behind that step, and the summary of the part that ended there.

    Args:
        folder: the run's folder.
        step: the step from which it goes on.
        dry_run: only read, and see whether the files can be cut.

    Raises:
        UserError: a line is damaged.
    """
    path = folder / "metrics.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
        try:
            kept = [x for x in whole if (y := json.loads(x))["step"] <= step and SUMMARY not in y]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
        if not dry_run:
            write_text(path, "".join(kept))


def append_metrics(folder: Path, step: int, metrics: dict[str, Any]) -> None:
    """Add one line to ``metrics.jsonl``; a number that is not finite is written as null."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    clean = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    append_text(folder / "metrics.jsonl", json.dumps({"step": step, **clean}) + "\n")
