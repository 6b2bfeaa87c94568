"""The lines of a jsonl file that a run is still writing, or was killed while it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The mappings in a jsonl file.

    A last line that has no end yet is left out: the run is writing it, or was killed while it did.

    Raises:
        UserError: a line that is no JSON mapping.
    """
    # Only a newline ends a line: model output may hold any other separator that Unicode knows.
    # Bytes, since a line without an end may also end within a character.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"'{path}', line {number} is damaged: it is no JSON") from error
            if not isinstance(row, dict):
                raise UserError(f"'{path}', line {number} is damaged: it is no mapping")
            yield row
