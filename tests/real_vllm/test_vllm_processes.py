"""Two gloo processes, each with an engine of its own, on one model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

HERE = Path(__file__).parent


def launch(folder: Path, model: str, method: str) -> list[dict[str, Any]]:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*run, str(HERE / "vllm_process.py"), str(folder), model, method],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize(("method", "own"), [("prefix_rft", [8, 8]), ("luffy", [7, 7])])
def test_each_process_samples_its_rows(
    tmp_path: Path, model_folder: str, method: str, own: list[int]
) -> None:
    """Two groups of eight, one on each, whose first row is a hybrid one or a demonstration."""
    ranks = launch(tmp_path, model_folder, method)
    assert [rank["seed"] for rank in ranks] == [3, 4]  # the run's seed is 3
    for rank, sent in zip(ranks, own, strict=True):
        assert rank["sent"] == [sent] * 3
        assert max(rank["distances"]) <= 1e-5
        for known in rank["known"]:
            assert known.tolist() == [i == 0 for i in range(8)]
    first, second = (rank["first"][1:] for rank in ranks)
    width = min(first.size(1), second.size(1))
    assert not torch.equal(first[:, :width], second[:, :width])
    for a, b in zip(*(rank["weights"] for rank in ranks), strict=True):
        assert torch.equal(a, b)
