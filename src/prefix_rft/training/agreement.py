"""Several processes of one run: they start from the same, and hear when one of them is gone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from prefix_rft.data.files import PLACE
from prefix_rft.support.errors import RunError, UserError, one_line
from prefix_rft.training.resume import ResumePoint


def agree(rows: Dataset) -> None:
    """Make sure that all processes train on the same rows, whatever their graders said.

    Raises:
        UserError: they do not.
    """
    kept = [(row[PLACE], len(row["demonstration"])) for row in _cells(rows)]
    digest = hashlib.sha256(repr(kept).encode()).hexdigest()
    if len(set(gather_object([digest]))) > 1:
        raise UserError(
            "processes disagree on which rows and demonstrations can be graded: "
            "let the grader give the same verdict each time"
        )


def _cells(rows: Dataset) -> Iterator[Any]:
    yield from rows.select_columns([PLACE, "demonstration"])


def agree_to_start(refused: str | None, start: ResumePoint) -> None:
    """Make sure that no process waits for one that has been refused, or goes on from elsewhere.

    Raises:
        UserError: the main process was refused, or not all have found the same checkpoint.
    """
    reports = gather_object([(refused, start.step)])
    if words := next((w for w, _ in reports if w is not None), None):
        raise UserError(words)
    if len({step for _, step in reports}) > 1:
        raise UserError(
            "processes have found different checkpoints: the run was still going on; start again"
        )


@contextmanager
def hears_others(trainer: Any, go_on: Callable[[], str]) -> Iterator[None]:
    """Say in a sentence that a run of several processes has lost one.

    Raises:
        RunError: another process has ended.
    """
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        alone = trainer.accelerator.num_processes == 1
        if alone or not re.search(r"gloo|nccl|connection", str(error), re.IGNORECASE):
            raise
        raise RunError(
            "another process of the run has ended or does not answer (its own output says why); go "
            f"on with: {go_on()}. {one_line(error)}"
        ) from error
