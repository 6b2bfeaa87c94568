"""Boards with records that nobody had to train."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefix_rft.compare.arms import read_comparison
from prefix_rft.compare.job import Job
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.work import DONE, sets_of
from prefix_rft.recipe.recipe import RecipeFile

RECIPE = """
model: base
train_data: train.jsonl
eval_data: test.jsonl
reward: exact
max_steps: 100
learning_rate: 1e-3
"""


def make_board(folder: Path, compare: Mapping[str, Any], **named: Any) -> Board:
    """A board over a recipe with these settings of ``compare``."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "base").mkdir(exist_ok=True)
    recipe = RecipeFile.read(path).recipe()
    data = {"learning_rate": 1e-3, "compare": {"temperatures": [1.0], **compare}}
    return Board(read_comparison(data, **named), str(path), recipe, {}, folder / "out")


def finish(
    board: Board,
    job: Job,
    correct: Sequence[int] = (0, 4),
    graded: int = 4,
    flops: float = 0.0,
    steps: int = 100,
    **sets: Sequence[int],
) -> None:
    """Leave a record of a run, and its model."""
    table = {"graded": graded, "truncated": 0.25, "no_answer": 0.5, "tokens": 7.0}
    record = {
        "spec": {**board.spec(job), **({"steps": steps} if job.arm else {})},
        "costs": {"flops": flops, "sampled": 10.0, "seconds": 2.0},
        "inputs": {one.name: one.settings() for one in sets_of(board.resolved, None, None)},
        "machine": {},
        "sets": {
            name: {"1": {**table, "correct": list(c)}}
            for name, c in {"held-out": correct, **sets}.items()
        },
        "columns": {},
    }
    (job.folder / "model").mkdir(parents=True, exist_ok=True)
    (job.folder / DONE).write_text(json.dumps(record))
    board.records.clear()
