"""Runs whose evaluations along the way find what a test says."""

import io
from pathlib import Path
from typing import Any

import killed_runs as killed
import pytest
from rich.console import Console

from prefix_rft.training.train import train
from tiny import make_rows


def write_task(folder: Path) -> Path:
    """A recipe of five steps with three held-out rows."""
    path = killed.write_task(folder)
    make_rows(3, seed=1).to_json(folder / "valid.jsonl")
    more = "eval_data: valid.jsonl\neval_samples: 2\nmax_steps: 5\nlogging_steps: 1\n"
    path.write_text(path.read_text().replace("logging_steps: 2\n", more))
    return path


def script(patch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """From now on an evaluation at a step finds this ``eval_avg``, and what is left of 1 as
    ``eval_pass``.
    """

    def measured(setup: Any, trainer: Any, *args: Any) -> dict[str, float]:
        value = values[trainer.state.global_step]
        return {"eval_avg": value, "eval_pass": 1 - value, "eval_runtime": 0.0}

    patch.setattr("prefix_rft.training.along.measure", measured)


def run(recipe: Path, folder: Path, *overrides: str, resume: bool = False) -> tuple[Path, str]:
    """The folder of a finished run, and what it said."""
    console = Console(width=200, file=io.StringIO(), record=True)
    made = train(str(recipe), [*overrides, f"runs={folder}"], console, resume)
    return made, console.export_text()


def weights(folder: Path) -> bytes:
    """Of a model's folder."""
    return (folder / "model.safetensors").read_bytes()
