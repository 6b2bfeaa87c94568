"""A reward that two gloo processes learn together is the one that a single one learns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_gloo import HERE, launch


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE.parents[1] / "training"))
    from killed_runs import write_task

    (tmp_path / "task").mkdir()
    recipe = str(write_task(tmp_path / "task"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    both = launch("reward_two_processes.py", tmp_path / "two", [recipe])[1]
    script = [sys.executable, str(HERE / "reward_two_processes.py"), str(tmp_path / "one"), recipe]
    subprocess.run(script, check=True, capture_output=True)
    one = torch.load(tmp_path / "one/rank0.pt", weights_only=True)
    assert both[0]["pairs"] == both[1]["pairs"] == one["pairs"]  # a sample is its row's
    assert both[0]["probe"] == both[1]["probe"]
    assert both[0]["probe"] == pytest.approx(one["probe"], abs=1e-4)
    moved = False
    for name, weight in one["reward"].items():
        torch.testing.assert_close(both[0]["reward"][name], weight, rtol=1e-4, atol=1e-5)
        moved |= name.startswith("score") and bool(weight.abs().max() > 0)
    assert moved
