"""`make quickstart` as a user runs it: the trained model is clearly better than its base."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_quickstart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prefix_rft.cli"]
    subprocess.run([*command, "task", "countdown", "data"], cwd=tmp_path, check=True)
    subprocess.run([*command, "train", "data/recipe.yaml"], cwd=tmp_path, check=True)
    evaluation = json.loads((tmp_path / "runs/countdown/eval.json").read_text())
    base, trained = evaluation["base"], evaluation["trained"]
    assert base["problems"] == trained["problems"] == 400
    assert trained["low"] > base["high"]
    # The saved model is the one that was evaluated: same rows at once, same draws, same answer.
    subprocess.run(
        [
            *command,
            "eval",
            "runs/countdown/model",
            "--data",
            "data/test.jsonl",
            "--reward",
            "prefix_rft.tasks.countdown:reward",
            "--max-completion-length",
            "12",
            "--batch-size",
            "256",
            "--output",
            "again",
            "--temperature",
            "1",
        ],
        cwd=tmp_path,
        check=True,
    )
    [again] = json.loads((tmp_path / "again/result.json").read_text())["results"]
    assert again["avg"]["mean"] == pytest.approx(trained["mean"], abs=1e-6)
