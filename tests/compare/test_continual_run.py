"""Tasks one after the other from end to end, and killed on the way: the same matrices."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from continual_tasks import write_tasks
from filelock import FileLock
from test_compare_run import WAIT_SECONDS, compare, records, some

from prefix_rft.runs.reader import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks")).parent


@pytest.fixture(scope="module")
def whole(task: Path) -> Path:
    """A sequence that nobody disturbed."""
    assert continual(task, "whole").wait(WAIT_SECONDS) == 0
    return task / "whole"


def continual(task: Path, output: str) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    return compare(task, output, "continual", "--seeds", "1")


def matrices(folder: Path) -> dict[str, Any]:
    found = sorted(folder.glob("matrices/*/seed-*/matrix.json"))
    return {str(p.relative_to(folder)): json.loads(p.read_text()) for p in found}


def test_from_end_to_end(whole: Path) -> None:
    found = records(whole)
    assert len(found) == 1 + 2 * 3
    stage = found["arms/rl/2-three/seed-0/done.json"]
    assert stage["spec"]["start"] == "rl/1-two"
    assert list(stage["sets"]) == ["two", "three", "arithmetic"]
    assert len(stage["sets"]["two"]["1"]["correct"]) == 6
    at_once = found["arms/sft/multi_task/seed-0/done.json"]
    assert at_once["spec"]["steps"] == 8
    assert at_once["spec"]["keys"]["train_data"] == "union.jsonl"
    own = matrices(whole)["matrices/rl/seed-0/matrix.json"]["temperatures"]["1"]["matrix"]
    stages = ("base", "arms/rl/1-two/seed-0", "arms/rl/2-three/seed-0")
    assert len(own) == len(stages)
    for row, name in zip(own, stages, strict=True):
        sets = found[f"{name}/done.json"]["sets"]
        assert row == pytest.approx([sum(sets[n]["1"]["correct"]) / 12 for n in ("two", "three")])


def test_rows_of_both_tasks_are_graded_in_one_run(whole: Path) -> None:
    run = RunFolder(whole / "arms/rl/multi_task/seed-0")
    rows = [row for step in run.generations() for row in run.rollouts(step)]
    assert len(rows) == 8 * 2 * 4
    operands = {len(row.prompt.split(" target ")[0].split()) - 1 for row in rows}
    assert operands == {2, 3}
    statuses = {row.verdicts["by_task"]["status"] for row in rows}
    assert statuses <= {"correct", "wrong"}  # nothing that a reward failed at


KILLS = (
    (some("arms/rl/1-two/seed-0/checkpoint-*"), signal.SIGKILL),  # in the middle of a stage
    (some("arms/rl/1-two/seed-0/done.json"), signal.SIGKILL),  # between two stages
    (some("arms/sft/2-three/seed-0/eval"), signal.SIGINT),
)


def test_killed_it_ends_with_the_same_matrices(task: Path, whole: Path) -> None:
    folder = task / "killed"
    for reached, kind in KILLS:
        process = continual(task, "killed")
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached(folder):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(kind)
        assert process.wait(60) != 0
        for lock in folder.rglob("*.lock"):
            FileLock(lock).acquire(timeout=30).lock.release()
        assert matrices(folder) == {}
    assert continual(task, "killed").wait(WAIT_SECONDS) == 0
    assert records(folder) == records(whole)
    assert matrices(folder) == matrices(whole)
    tables = [(f / "continual.md").read_text().split("Costs of")[0] for f in (folder, whole)]
    assert tables[0] == tables[1]
