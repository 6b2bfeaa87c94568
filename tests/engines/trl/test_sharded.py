"""Methods that keep weights, in real steps whose weights FSDP2 shards: against plain torch."""

from typing import Any

import pytest
import torch
from two_gloo import Ranks, launch

from prefix_rft.engines.trl.safety.own_state import kept_for
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError
from second.step import formulas, teachers, trl_run
from second.step.update import relative_error

CASES = ("ema", "snapshot", "frozen", "iw_sft")
STEPS = 3
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return launch("sharded_two_processes.py", tmp_path_factory.mktemp("sharded"), CASES)


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_its_formula(ranks: Ranks, case: str) -> None:
    both = [rank[case] for rank in ranks[1]]
    assert [found["kinds"] for found in both] == [["DTensor"]] * 2
    records = trl_run.joined(*(found["records"] for found in both))
    source = trl_run.make_rewards(("mixed",) * 8, missing=(1, 3))
    assert len(records) == STEPS
    for n, record in enumerate(records):
        step = trl_run.update_of(record, record.weights, records[0].weights)
        if case == "iw_sft":
            loss = formulas.iw_sft(step)
        else:
            told = teachers.told_of(source, records, n, case, "demonstration")
            loss = teachers.opd(step, told)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        # In the first step D is small, and its gradient a hundredth of those behind it.
        assert relative_error(record.gradient, step.gradient(loss)) < (3e-5 if n == 0 else 1e-5)


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_with_the_parts_of_its_checkpoint(ranks: Ranks, case: str) -> None:
    folder, found = ranks
    for rank in found:
        for what in ("weights", "kept"):
            again = rank[f"{case}-again"][what]
            assert all(torch.equal(w, again[n]) for n, w in rank[case][what].items())
    name = "reference" if case == "iw_sft" else "teacher"
    there = sorted(p.name for p in (folder / case / "checkpoint-2").glob(f"{name}*"))
    kinds = ("safetensors", "sha256") if case == "ema" else ("sha256",)
    assert there == [f"{name}-0000{i}-of-00002.{kind}" for i in (1, 2) for kind in kinds]


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "snapshot", "frozen", "live", "adapter_off"])
def test_of_sharded_weights_some_cannot_be_kept(weights: str) -> None:
    method = load("opd", teacher={"weights": weights, "context": "demonstration"})
    model: Any = torch.nn.Linear(2, 2)
    model.disable_adapter = None
    keeps = set() if weights in ("live", "adapter_off") else {"teacher"}

    def of(sharded: bool, fsdp2: bool) -> set[str]:
        return set(kept_for(method, model, sharded, fsdp2))

    assert of(False, True) == keeps
    if weights == "adapter_off":
        with pytest.raises(UserError, match="sharded weights yet: use frozen, with FSDP2"):
            of(True, True)
        return
    assert of(True, True) == keeps
    if keeps:
        with pytest.raises(UserError, match=r"of FSDP1 or DeepSpeed: use FSDP2 \(fsdp_config"):
            of(True, False)
    else:
        assert of(True, False) == keeps
