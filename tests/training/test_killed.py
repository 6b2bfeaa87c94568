"""A run that is killed again and again ends with the files of one that nobody disturbed."""

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed_runs as killed
import pytest

from prefix_rft.runs.checkpoints import checkpoints

LIMIT_SECONDS = 120
# 8 rows, 4 of them in a generation: 2 generations an epoch.
RUNS = {
    "one update": ["max_steps=12"],
    "two iterations, two updates each": [
        "max_steps=24",
        "num_iterations=2",
        "steps_per_generation=4",
    ],
    "memory": ["max_steps=12", "method=adaback"],
    "evaluations": [  # the best is that of step 24, and after three more it ends
        "max_steps=32", "learning_rate=3e-3", "eval_data=train.jsonl", "eval_samples=1",
        "eval_every=2", "keep=best", "stop_after=3",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.write_task(tmp_path_factory.mktemp("task"))


def kill_and_compare(
    recipe: Path,
    folder: Path,
    name: str,
    kills: int,
    seed: int,
    phases: Sequence[str] = killed.PHASES,
) -> None:
    overrides = RUNS[name]
    whole, again = folder / "whole", folder / "again"
    assert killed.run(recipe, whole, overrides, killed.Moments()) == 0
    totals, marks = json.loads(whole.with_suffix(".counts.json").read_text())
    assert min(totals[p] for p in (*killed.PHASES, *phases)) > 10
    rng = random.Random(seed)
    for number in range(kills):
        done = marks[str(max(checkpoints(again / "run"), default=0))]
        left = {p: totals[p] - done[p] for p in totals}
        phase = phases[number % len(phases)]
        if not left[phase]:
            phase = "checkpoint"  # the model is saved last
        # Early rather than late, so that a run is killed often before it ends.
        moment = int(left[phase] * rng.random() ** 2)
        status = killed.run(recipe, again, overrides, killed.Moments(phase, moment))
        assert status == -signal.SIGKILL, f"{phase} {moment}: {error(again)}"
    assert killed.run(recipe, again, overrides) == 0, error(again)
    expected, found = (killed.evidence(x / "run") for x in (whole, again))
    for part in expected:
        assert found[part] == expected[part], part


def error(runs: Path) -> str:
    path = runs.with_suffix(".error.txt")
    return path.read_text() if path.is_file() else "it ended"


@pytest.mark.slow
def test_killed_twice(recipe: Path, tmp_path: Path) -> None:
    """While it saves, and while it writes down what it did: the moments that leave half a file."""
    name, phases = "two iterations, two updates each", ("checkpoint", "record")
    kill_and_compare(recipe, tmp_path, name, kills=2, seed=0, phases=phases)


@pytest.mark.slow
def test_killed_five_times(recipe: Path, tmp_path: Path) -> None:
    """In a generation, while grading, updating, saving, and writing what it did."""
    kill_and_compare(recipe, tmp_path, "two iterations, two updates each", kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_it_evaluates_and_keeps_the_best(recipe: Path, tmp_path: Path) -> None:
    """Also between the weights and the line that says that they are the best."""
    phases = (killed.BEST, "generation", killed.BEST)
    kill_and_compare(recipe, tmp_path, "evaluations", kills=12, seed=3, phases=phases)
    assert max(checkpoints(tmp_path / "whole/run")) == 30
    note = json.loads((tmp_path / "whole/run/best/best.json").read_text())
    assert note["step"] == 24


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again(recipe: Path, tmp_path: Path, name: str, seed: int) -> None:
    kill_and_compare(recipe, tmp_path, name, kills=15, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_processes_one_is_killed(recipe: Path, tmp_path: Path) -> None:
    """The other ends with a sentence, within its timeout, and the run goes on."""

    def start(runs: Path, rank: int = 0, phase: str = "", number: int = 0) -> list[Any]:
        port = killed.free_port()
        return [
            killed.start_one_of_two(r, port, recipe, runs, phase if r == rank else "", number)
            for r in (0, 1)
        ]

    def end(processes: list[Any]) -> list[tuple[int, str]]:
        """Exit codes and last words; neither may take longer than start and timeout do."""
        found = []
        for process in processes:
            said = process.communicate(timeout=LIMIT_SECONDS)[1]
            found.append((process.returncode, said))
        return found

    assert [code for code, _ in end(start(tmp_path / "whole"))] == [0, 0]
    again = tmp_path / "again"
    kills = [(1, "generation", 30), (0, "checkpoint", 20), (1, "update", 6), (0, "grading", 1)]
    for rank, phase, number in kills:
        processes = start(again, rank, phase, number)
        ended = end(processes)
        assert ended[rank][0] == -signal.SIGKILL, ended[rank][1]
        code, said = ended[1 - rank]
        assert code == 1
        assert "error: another process of the run has ended or does not answer" in said, said
    assert [code for code, _ in end(start(again))] == [0, 0]
    expected, found = (killed.evidence(x / "run") for x in (tmp_path / "whole", again))
    for part in expected:
        assert found[part] == expected[part], part
