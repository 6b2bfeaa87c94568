"""Two gloo processes, each with an engine of its own, on one model."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
from vllm_runs import launch


@pytest.mark.slow
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
