"""Weights that trade places with those of a model that FSDP2 shards, and of one that is whole."""

from pathlib import Path
from typing import Any

import kept_two_processes
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from two_gloo import Ranks, launch

from prefix_rft.engines.kept_weights import KeptWeights
from tiny import make_model, make_tokenizer

CASES = ("drops", "keeps")
two_processes = pytest.mark.slow


@pytest.mark.parametrize("case", CASES)
def test_in_one_process(case: str) -> None:
    """The parts of one process are the whole, but as tensors of their own kind all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = kept_two_processes.forwards(case == "drops")
    finally:
        dist.destroy_process_group()
    assert found.pop("moved") > 1e-3
    assert found.pop("update") < 1e-6
    assert found == dict.fromkeys(("student", "teacher", "again", "between"), 0.0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return launch("kept_two_processes.py", tmp_path_factory.mktemp("kept"), CASES)


@two_processes
@pytest.mark.parametrize("case", CASES)
def test_student_teacher_and_student_again(ranks: Ranks, case: str) -> None:
    """Exact, also where the outermost layer still has what it gathered for the forward before."""
    for found in ranks[1]:
        assert [found[case][k] for k in ("student", "teacher", "again")] == [0.0, 0.0, 0.0]


@two_processes
@pytest.mark.parametrize("case", CASES)
def test_a_teacher_between_forward_and_backward(ranks: Ranks, case: str) -> None:
    for found in ranks[1]:
        assert found[case]["between"] == 0.0
        assert found[case]["update"] < 1e-6
        assert found[case]["moved"] > 1e-3


@two_processes
@pytest.mark.parametrize("case", CASES)
def test_a_moving_average_of_parts_is_that_of_the_whole(ranks: Ranks, case: str) -> None:
    for found in ranks[1]:
        assert found[case]["apart"] < 1e-6
        assert found[case]["moved"] > 1e-3
    parts = [found[case]["parts"] for found in ranks[1]]
    for name, p in make_model(make_tokenizer(), layers=2).named_parameters():
        assert torch.cat([part[name] for part in parts]).shape == p.shape
        assert parts[0][name].shape != p.shape


@two_processes
@pytest.mark.parametrize("case", CASES)
def test_each_process_saves_its_part(ranks: Ranks, case: str) -> None:
    folder, found = ranks
    for rank, of_rank in enumerate(found):
        parts, loaded = of_rank[case]["parts"], of_rank[case]["loaded"]
        assert parts.keys() == loaded.keys()
        assert all(torch.equal(w, loaded[n]) for n, w in parts.items())
        there = load_file(folder / case / f"teacher-0000{rank + 1}-of-00002.safetensors")
        assert all(torch.equal(w, there[n]) for n, w in parts.items())
        assert "made with another frozen policy" in of_rank[case]["refused"]
        assert "or its weights were not sharded over as many" in of_rank[case]["elsewhere"]
    names = sorted(p.name for p in (folder / case).iterdir())
    assert names == [
        f"{name}-0000{i}-of-00002.{kind}"
        for name, i, kind in (
            ("frozen", 1, "sha256"),
            ("frozen", 2, "sha256"),
            *(("teacher", i, kind) for i in (1, 2) for kind in ("safetensors", "sha256")),
        )
    ]


def test_a_whole_model_is_not_copied_and_trains_as_if_nothing_had_been() -> None:
    tokenizer = make_tokenizer()
    model, plain, other = (make_model(tokenizer, seed=seed) for seed in (0, 0, 5))
    kept = KeptWeights(model, "teacher")
    kept.weights = {n: p.detach().clone() for n, p in other.named_parameters()}
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    ids = torch.arange(3, 15)[None]

    def loss(m: Any) -> Any:
        return m(input_ids=ids, labels=ids).loss

    mine = loss(model)
    with torch.no_grad(), kept.swapped():
        assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)
        for name, p in model.named_parameters():
            assert p.data_ptr() == kept.weights[name].data_ptr()
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before
    mine.backward()
    loss(plain).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # pyright: ignore[reportArgumentType]


def test_the_main_process_alone_writes_whole_weights(tmp_path: Path) -> None:
    kept = KeptWeights(torch.nn.Linear(2, 2))
    kept.save(tmp_path, main=False)
    assert not list(tmp_path.iterdir())
    kept.save(tmp_path, main=True)
    assert [p.name for p in tmp_path.iterdir()] == ["reference.sha256"]
