"""Two small tasks on the bundled base, and boards over them with records that nobody trained."""

import json
from collections.abc import Sequence
from pathlib import Path

from prefix_rft.compare.continual.command import read_board
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.work import DONE
from prefix_rft.tasks.countdown import write

RECIPE = """
name: tasks
model: three/base
reward: countdown
num_generations: 4
prompts_per_step: 2
max_completion_length: 12
max_steps: 4
save_steps: 2
learning_rate: 1e-3
continual:
  tasks:
    two: {train_data: two/train.jsonl, eval_data: two/test.jsonl}
    three:
      train_data: three/train.jsonl
      eval_data: three/test.jsonl
      reward: "prefix_rft.tasks.countdown:reward"
  seeds: 2
  samples: 2
  temperatures: [1.0]
  forgetting: three/forgetting.yaml
  reference: rl
  arms:
    sft: {method: sft, "~num_generations": null}
    rl: {method: dr_grpo}
"""


def write_tasks(folder: Path) -> Path:
    """Rows, base and recipe; returns the recipe's path."""
    write(folder / "two", 20, 6, 0, 4, operands=[2])
    write(folder / "three", 20, 6, 0, 4, operands=[3])
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def make_board(recipe: Path, *overrides: str, output: str | None = None) -> tuple[Board, Continual]:
    """A board over the two tasks."""
    folder = output or str(recipe.parent / "out")
    return read_board(str(recipe), overrides, None, None, folder)


def finish(board: Board, name: str, seed: int, **correct: Sequence[int]) -> None:
    """Leave a record of a run, or of the base, with so many right of 4 on each problem of a set."""
    job = board.base if name == "base" else board.job(board.comparison.arm(name), seed)
    table = {"graded": 4, "truncated": 0.0, "no_answer": 0.0, "tokens": 7.0}
    record = {
        "spec": json.loads(json.dumps(board.spec(job))),
        "costs": {"flops": 1000.0, "sampled": 10.0, "trained": 20.0, "seconds": 2.0},
        "inputs": json.loads(json.dumps({one.name: one.settings() for one in board.sets()})),
        "machine": {},
        "sets": {n: {"1": {**table, "correct": list(c)}} for n, c in correct.items()},
        "columns": {},
    }
    (job.folder / "model").mkdir(parents=True, exist_ok=True)
    (job.folder / DONE).write_text(json.dumps(record))
    board.records.clear()
