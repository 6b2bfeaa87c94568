"""A run that is killed again and again ends with the files of one that nobody disturbed."""

import json
import os
import random
import signal
from pathlib import Path

import killed_runs as killed
import pytest

from prefix_rft.checkpoints import checkpoints

# 8 rows, 4 of them in a generation: 2 generations an epoch.
RUNS = {
    "one update": ["max_steps=12"],
    "two iterations, two updates each": [
        "max_steps=24",
        "num_iterations=2",
        "steps_per_generation=4",
    ],
    "memory": ["max_steps=12", "method=adaback"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.write_task(tmp_path_factory.mktemp("task"))


def kill_and_compare(recipe: Path, folder: Path, name: str, kills: int, seed: int) -> None:
    overrides = RUNS[name]
    whole, again = folder / "whole", folder / "again"
    assert killed.run(recipe, whole, overrides, killed.Moments()) == 0
    totals, marks = json.loads(whole.with_suffix(".counts.json").read_text())
    assert min(totals.values()) > 10
    rng = random.Random(seed)
    for number in range(kills):
        done = marks[str(max(checkpoints(again / "run"), default=0))]
        left = {p: totals[p] - done[p] for p in killed.PHASES}
        phase = killed.PHASES[number % len(killed.PHASES)]
        if not left[phase]:
            phase = "checkpoint"  # the model is saved last
        # Early rather than late, so that a run is killed often before it ends.
        moment = int(left[phase] * rng.random() ** 2)
        status = killed.run(recipe, again, overrides, killed.Moments(phase, moment))
        assert os.WIFSIGNALED(status), f"{phase} {moment}: {error(again)}"
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert killed.run(recipe, again, overrides) == 0, error(again)
    expected, found = (killed.evidence(x / "run") for x in (whole, again))
    for part in expected:
        assert found[part] == expected[part], part


def error(runs: Path) -> str:
    path = runs.with_suffix(".error.txt")
    return path.read_text() if path.is_file() else "it ended"


def test_killed_five_times(recipe: Path, tmp_path: Path) -> None:
    """In a generation, while grading, updating, saving, and writing what it did."""
    kill_and_compare(recipe, tmp_path, "two iterations, two updates each", kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again(recipe: Path, tmp_path: Path, name: str, seed: int) -> None:
    kill_and_compare(recipe, tmp_path, name, kills=15, seed=seed)
