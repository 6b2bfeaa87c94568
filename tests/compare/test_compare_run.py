"""A comparison from end to end, and one that is killed again and again: the same records."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from prefix_rft.cli import main
from prefix_rft.compare.trajectory import measures
from prefix_rft.compare.work import DONE
from prefix_rft.tasks.countdown import write

RECIPE = """
model: base
train_data: train.jsonl
eval_data: test.jsonl
reward: prefix_rft.tasks.countdown:reward
num_generations: 4
prompts_per_step: 2
max_completion_length: 12
max_steps: 8
learning_rate: 1e-3
compare:
  seeds: 2
  samples: 2
  temperatures: [1.0, 0.0]
  validation_data: valid.jsonl
  forgetting: forgetting.yaml
  by: [difficulty]
  trajectory: 4
  reference: prefix_rft
  arms:
    sft:
      method: sft
      "~num_generations": null
      sweep: {learning_rate: [1e-3, 1e-4]}
    prefix_rft: {}
    sft+prefix_rft: {start: sft, match: prefix_rft}
"""
WAIT_SECONDS = 240
COMMAND = "from prefix_rft.cli import main; raise SystemExit(main())"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, 40, 12, 0, 8)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def whole(task: Path) -> Path:
    """A comparison that nobody disturbed."""
    assert compare(task, "whole").wait(WAIT_SECONDS) == 0
    return task / "whole"


def compare(
    task: Path, output: str, command: str = "compare", *more: str
) -> subprocess.Popen[bytes]:
    """Start the command, or one that runs like it, as a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-c", COMMAND, command, str(task / "recipe.yaml")),
            *("--output", str(task / output), "--jobs", "2", *more),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # Tests that run in the background of a shell inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def records(folder: Path) -> dict[str, Any]:
    """What the runs have left, less what a clock or a machine says."""
    found = {}
    for path in sorted(folder.rglob(DONE)):
        record = json.loads(path.read_text())
        record["costs"].pop("seconds")
        record.pop("machine")
        found[str(path.relative_to(folder))] = record
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_end_to_end(whole: Path) -> None:
    assert len(records(whole)) == 8  # base, three of sft, two of each other arm
    page = (whole / "comparison.html").read_text(encoding="utf-8")
    for words in ("Against prefix_rft", "By difficulty", "On arithmetic", "On validation"):
        assert words in page
    assert "sft+prefix_rft" in (whole / "comparison.csv").read_text()
    record = next(r for name, r in records(whole).items() if "sft+prefix_rft/seed-1" in name)
    assert record["spec"]["start"] == "sft"
    assert 1 <= record["spec"]["steps"] < 8  # the rest went into sft
    assert list(record["sets"]) == ["held-out", "validation", "arithmetic"]
    assert len(record["sets"]["held-out"]["1"]["correct"]) == 12
    assert [p["step"] for p in record["trajectory"]][-1] == record["spec"]["steps"]
    assert record["costs"]["sampled"] > 0


def some(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: any(folder.glob(pattern))


KILLS = (
    (some("arms/*/*/seed-0/checkpoint-*"), signal.SIGKILL),  # in the middle of training
    (some("arms/sft/*/seed-*/eval/samples/*/*.jsonl"), signal.SIGKILL),  # of an evaluation
    (some("arms/prefix_rft/seed-0/checkpoint-*"), signal.SIGTERM),
    (some("arms/prefix_rft/seed-0/costs.json"), signal.SIGINT),
    (some("arms/sft+prefix_rft/seed-*/rollouts"), signal.SIGKILL),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_point_it_goes_on(task: Path, whole: Path) -> None:
    folder, before = task / "killed", {}
    for reached, kind in KILLS:
        process = compare(task, "killed")
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached(folder):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(kind)
        assert process.wait(60) != 0
        for lock in folder.rglob("*.lock"):  # no run may go on without its comparison
            FileLock(lock).acquire(timeout=30).lock.release()
        # What was done stays as it was.
        assert before.items() <= records(folder).items()
        before = records(folder)
    assert len(before) < 8
    assert compare(task, "killed").wait(WAIT_SECONDS) == 0
    assert records(folder) == records(whole)


@pytest.mark.slow
def test_done_is_done(task: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {p: p.stat().st_mtime_ns for p in whole.rglob(DONE)}
    command = ["compare", str(task / "recipe.yaml"), "--output", str(whole)]
    assert main(command) == 0
    assert "8 runs, 8 done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob(DONE)} == times
    assert main([*command, "compare.samples=3"]) == 2
    assert "another 'samples'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_point_of_a_path_is_the_trained_model(task: Path, whole: Path) -> None:
    run = whole / "arms/prefix_rft/seed-0"
    path = json.loads((run / DONE).read_text())["trajectory"]
    assert [p["step"] for p in path] == [2, 4, 6, 8]
    last = measures(str(run / "model"), str(task / "recipe.yaml"), [])
    assert path[-1] == pytest.approx({"step": 8, **last})
