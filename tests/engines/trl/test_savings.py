"""What is left out changes no gradient, and is left out indeed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainers import imitation_trainer

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.savings import read_savings
from prefix_rft.engines.trl.scorer import Scorer
from prefix_rft.engines.trl.update.micro_batches import planned
from prefix_rft.support.errors import UserError
from second.step import measured
from second.step.trl_run import Recorder, make_rewards, sharp_model, start
from second.step.update import relative_error
from tiny import make_tokenizer

FLAT = ("mixed", "wrong", "right", "mixed")
"""Rules of the groups: in one of four at least all rewards are the same."""


def run(
    folder: Path, savings: Any, method: str = "dr_grpo", rules: tuple[str, ...] = FLAT, **more: Any
) -> tuple[Any, Recorder]:
    rows = make_rewards(rules * (8 // len(rules)))
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
    }
    trainer, recorder = start(
        PrefixRFTTrainer, folder, method, rows, savings=savings, **{**settings, **more}
    )
    trainer.train()
    return trainer, recorder


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """For each time that rows are scored: whether with a gradient, and how many."""
    seen: list[tuple[bool, int]] = []
    original = Scorer.of

    def of(self: Any, model: Any, rows: Any, wanted_BT: Any, *args: Any) -> Any:
        seen.append((torch.is_grad_enabled(), len(wanted_BT)))
        return original(self, model, rows, wanted_BT, *args)

    monkeypatch.setattr(Scorer, "of", of)
    return seen


# ---- which rows are run --------------------------------------------------------------------------


def plan(
    live: list[int], others: list[int], packed: bool = False, micro_batches: int = 4
) -> list[list[int] | None]:
    """Of eight rows, whose lengths fall and whose groups are 0, 1, 0, 1, ...; ``others`` says how
    many rows other processes train."""
    trained = torch.zeros(8, dtype=torch.bool)
    trained[live] = True
    mask = torch.arange(10) < torch.arange(8, 0, -1)[:, None]
    rows = {"completion_mask": mask, "row_group": torch.arange(8) % 2}
    processes: Any = SimpleNamespace(gather=lambda x: torch.cat([x, torch.tensor(others).long()]))
    parts = planned(rows, trained, micro_batches, packed, processes)
    return [None if p is None else p.tolist() for p in parts]


def test_micro_batches_by_hand() -> None:
    every = list(range(8))
    assert plan(every, []) == [[7, 6], [5, 4], [3, 2], [1, 0]]
    assert plan(every, [], packed=True) == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert plan([1, 4, 5], []) == [None, None, [5], [4, 1]]
    assert plan([1, 4, 5], [], packed=True) == [None, None, [4], [1, 5]]


def test_processes_run_the_same_micro_batches() -> None:
    """The other one trains five rows, for which it needs three; this one has one for each."""
    assert plan([1, 4, 5], [5]) == [None, [5], [4], [1]]
    assert plan([4], [5]) == [None, [0], [0], [4]]
    # Idle is a row that is not trained, or it would be trained twice.
    assert plan([0, 1], [8]) == [[2], [1], [2], [0]]


def test_the_last_micro_batch_is_always_run() -> None:
    assert plan([], []) == [None, None, None, [0]]
    assert plan([], [3]) == [None, None, [0], [0]]


# ---- what a trainer runs -------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("method", "options"),
    [("dr_grpo", {}), ("prefix_rft", {}), ("prefix_rft", {"entropy_coef": 0.01}), ("luffy", {})],
)
def test_the_gradient_is_the_same(
    tmp_path: Path, method: str, options: dict[str, Any], passes: int
) -> None:
    found = []
    for name, savings in (("none", "none"), ("flat", ["untrained"]), ("all", "all")):
        more: dict[str, Any] = {"options": options, "num_iterations": passes, "max_steps": passes}
        found.append(run(tmp_path / name, savings, method, **more))
    gradients = [r.records[-1].gradient for _, r in found]
    for other in gradients[1:]:
        assert relative_error(other, gradients[0]) < 1e-6
    lines = [t.state.log_history[passes - 1] for t, _ in found]
    same = ("entropy", "policy/", "prefix/", "continuation/", "clip_ratio/", "trained/", "loss")
    for name in (n for n in lines[0] if n.startswith(same)):
        for line in lines[1:]:
            assert line[name] == pytest.approx(lines[0][name], rel=1e-5, abs=1e-6), name


def test_rows_of_flat_groups_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And rows whose reward is the mean of their group."""
    seen = watched(monkeypatch)
    run(tmp_path / "all", ["untrained"], rules=("mixed", "wrong"), log_rollouts=True)
    rollouts = measured.read(tmp_path / "all", "step")[0]
    live = sum(x["advantage"] != 0.0 for x in rollouts)
    assert 0 < live < 8
    assert sum(n for gradient, n in seen if gradient) == live
    seen.clear()
    run(tmp_path / "none", "none", rules=("mixed", "wrong"))
    assert [n for gradient, n in seen if gradient] == [4, 4, 4, 4]


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"entropy_coef": 0.01}])
def test_rows_that_a_regulariser_trains_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    seen = watched(monkeypatch)
    more: dict[str, Any] = {"options": options}
    if "beta" in options:
        sharp_model().save_pretrained(tmp_path / "model")
        make_tokenizer().save_pretrained(tmp_path / "model")
        more["model"] = str(tmp_path / "model")
    run(tmp_path / "run", "all", rules=("wrong",), **more)
    assert [n for gradient, n in seen if gradient] == [4, 4, 4, 4]


def test_a_step_in_which_nothing_is_trained_is_the_step_it_was(tmp_path: Path) -> None:
    """Weight decay and moments act on a gradient of 0, to the last bit."""
    weights = []
    for savings in ("none", "all"):
        trainer, recorder = run(
            tmp_path / savings, savings, rules=("wrong",), weight_decay=0.5, max_steps=2
        )
        assert not any(g.any() for g in recorder.records[0].gradient)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*weights)
    first = torch.cat([w.flatten() for w in recorder.records[0].weights.values()])
    assert len(first) >= len(weights[0])
    assert not torch.equal(first[: len(weights[0])], weights[0])


def test_what_cannot_be_packed_says_so(tmp_path: Path) -> None:
    trainer, _ = run(tmp_path, ["untrained"])
    assert trainer.scorer.why_whole == "savings leaves packing out"
    trainer, _ = run(tmp_path, "all")
    assert trainer.scorer.why_whole is None


def test_savings_are_named() -> None:
    assert read_savings("all") == ["untrained", "packing", "sampler_scores"]
    assert read_savings("none") == []
    assert read_savings(["packing", "untrained"]) == ["untrained", "packing"]
    with pytest.raises(UserError, match="unknown saving 'paking': did you mean 'packing'"):
        read_savings(["paking"])
    with pytest.raises(UserError, match="savings must be all, none or a list of untrained, "):
        read_savings(True)


def test_the_samplers_log_probs_are_held_against_the_updates(tmp_path: Path) -> None:
    """In the first update of a generation; one that has been tampered with shows."""
    lines = run(tmp_path / "run", "all", num_iterations=2, max_steps=2)[0].state.log_history
    name = "sampling/sampling_logp_difference/"
    assert lines[0][f"{name}mean"] <= lines[0][f"{name}max"] < 1e-5
    assert f"{name}mean" not in lines[1]
    rows = make_rewards(("mixed",) * 8)
    settings = {"per_device_train_batch_size": 16, "max_steps": 1}
    trainer, _ = start(PrefixRFTTrainer, tmp_path / "off", "dr_grpo", rows, **settings)
    original = trainer._begin_update

    def tampered() -> Any:
        trainer._buffered_inputs[0]["policy_logp"] += 0.25
        return original()

    trainer._begin_update = tampered
    trainer.train()
    assert trainer.state.log_history[0][f"{name}mean"] == pytest.approx(0.25, abs=1e-5)
    assert trainer.state.log_history[0][f"{name}max"] == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("method", ["sft", "iw_sft"])
def test_imitation_is_the_same_packed_and_whole(tmp_path: Path, method: str) -> None:
    """Also where a collator pads further than the longest row."""
    weights = []
    for savings, pad in (("none", None), ("all", None), ("none", 64), ("all", 64)):
        folder = tmp_path / f"{savings}{pad}"
        more: dict[str, Any] = {"method": method, "max_steps": 2, "save_strategy": "no"}
        trainer = imitation_trainer(folder, savings=savings, pad_to_multiple_of=pad, **more)
        trainer.train()
        assert (trainer.scorer.why_whole is None) == (savings == "all")
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-5)
