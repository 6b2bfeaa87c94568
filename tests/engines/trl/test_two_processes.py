"""Two gloo processes with a group split across them compute what one process would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from second.step.formulas import prefix_rft
from second.step.trl_run import joined, update_of
from second.step.update import relative_error

HERE = Path(__file__).parent


def launch(folder: Path, *args: str) -> list[list[dict]]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(HERE / "two_processes.py"),
            str(folder),
            *args,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "source", "generations"),
    [
        ("minibatch", "current", 8),
        ("row", "rollout", 8),
        ("minibatch", "rollout", 4),
    ],
)
def test_two_processes_are_one(tmp_path: Path, scope: str, source: str, generations: int) -> None:
    """A group of 8 lies across both; with groups of 4, each has one and they share the pool."""
    ranks = launch(tmp_path, scope, source, str(generations))
    assert len(ranks[0]) == len(ranks[1]) == 3
    for first, second, record in zip(*ranks, joined(*ranks), strict=True):
        for a, b in zip(first["gradient"], second["gradient"], strict=True):
            assert torch.equal(a, b)
        rows = record.rows
        assert len(rows) == 8
        assert {r.group for r in rows} == set(range(8 // generations))
        assert sum(r.prefix > 0 for r in rows) == 8 // generations
        step = update_of(record, temperature=0.9)
        loss = prefix_rft(step)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
        # Each process's loss is its share times the number of processes, which DDP averages.
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-8)
    text = (tmp_path / "rollouts/step_000000.jsonl").read_text()
    lines = [json.loads(x) for x in text.splitlines()]
    assert [line["row"] for line in lines] == [i % generations for i in range(8)]
