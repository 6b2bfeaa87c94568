"""The rows of several tasks as one file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prefix_rft.compare.continual.stages import LEAVE_OUT, UNION
from prefix_rft.compare.task import ContinualTask
from prefix_rft.data import Reading, load_rows
from prefix_rft.evaluation.collect import line_of, plain_rows
from prefix_rft.rewards.by_task import TASK
from prefix_rft.support.errors import UserError


def union_of(tasks: Sequence[ContinualTask]) -> str:
    """The rows to train on of all tasks, as the library knows them, with the task of each.

    Raises:
        UserError: rows that cannot be read, written, or told apart.
    """
    lines = []
    for task in tasks:
        own = task.recipe
        reading = Reading(own.columns, own.system_prompt)
        rows = load_rows(own.train_data, folder=own.folder, reading=reading)
        if TASK in rows.column_names:
            raise UserError(
                f"task '{task.name}': its rows have a column '{TASK}', which says of the rows of "
                f"all tasks where they belong: give it another name ({LEAVE_OUT})"
            )
        lines += [line_of({**row, TASK: task.name}) for row in plain_rows(rows, shown=True)]
    return "".join(lines)


def refuse_unlike(tasks: Sequence[ContinualTask]) -> None:
    """Look whether the rows of all tasks can be read as those of one run; nothing is left on disk.

    Raises:
        UserError: they cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / UNION
        path.write_text(union_of(tasks), encoding="utf-8")
        try:
            load_rows(path)
        except UserError as error:
            words = str(error).replace(f"{folder}/", "")
            raise UserError(f"the rows of all tasks at once: {words} ({LEAVE_OUT})") from error
