"""What the process of a run is told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefix_rft.compare.collection import ROWS, trained_on
from prefix_rft.compare.job import Job
from prefix_rft.compare.jobs import Board


def order_of(board: Board, job: Job) -> dict[str, Any]:
    """The order of a run that waits for nothing, as plain data.

    Args:
        board: the runs.
        job: the run.

    Raises:
        UserError: there is no step left within the compute that it is to match.
    """
    spec, comparison = board.spec(job), board.comparison
    keys = {} if job.arm is None else board.keys(job)
    shared = {"spec": spec, "folder": str(job.folder), "recipe": board.recipe}
    if job.collects:
        asked = {"collect": spec["collect"], "seed": job.seed, "batch_size": board.batch_size}
        return {**shared, "keys": keys, **asked}
    if job.arm is not None and job.arm.collect is not None:
        keys = trained_on(keys, board.collection(job.arm, job.seed).folder / ROWS)
    elif job.arm is not None and job.arm.rows is not None:
        keys = trained_on(keys, board.folder / job.arm.rows)
    return {
        **shared,
        "shared": board.whole(),
        "train": job.arm is not None,
        "model": board.resolved.model_source(),
        "keys": keys,
        "samples": comparison.samples,
        "temperatures": list(comparison.temperatures),
        "eval_seed": 0,
        "eval_batch_size": board.batch_size,
        "sets": [{**asdict(s), "folder": str(s.folder.resolve())} for s in board.sets()],
        "trajectory": comparison.trajectory,
        "by": list(comparison.by),
    }
