"""The sampler's log-probs and entropies as columns of a generation, and as ranks of prefixes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_vllm import put_in_place

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.rollout.scores import COLUMNS, known_entropy
from second.step import trl_run
from second.step.trl_run import make_rewards, rows_of

NAN = float("nan")


def start(folder: Path, method: str = "prefix_rft", rules: Any = ("mixed",), **kw: Any) -> Any:
    """A trainer with 16 rows in a generation, groups of four, micro-batches of four."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, **kw}
    rows = make_rewards([*rules] * (8 // len(rules)))
    return trl_run.start(PrefixRFTTrainer, folder, method, rows, **settings)[0]


def generations(trainer: Any) -> list[Any]:
    """The rows of every generation from now on, before TRL shuffles them."""
    found: list[Any] = []
    original = trainer._generate_and_score_completions

    def listen(inputs: Any) -> Any:
        found.append(original(inputs))
        return found[-1]

    trainer._generate_and_score_completions = listen
    return found


def compare(trainer: Any, rows: Any, temperature: float, weights: Any) -> int:
    """The columns of some rows against forwards of each row alone; how many rows are known."""
    plain = rows_of(rows, trainer.train_dataset)
    logps, entropies = trl_run.scores(weights, plain, temperature)
    known = 0
    for i, row in enumerate(plain):
        n = len(row.completion)
        told = [rows[name][i] for name in COLUMNS]
        assert all(x.dtype == torch.float32 for x in told)
        assert all(x[n:].isnan().all() for x in told)
        if row.whole:
            assert all(x.isnan().all() for x in told)
            continue
        known += 1
        for x, wanted in zip(told, (logps[i], entropies[i]), strict=True):
            assert (x[:n] - wanted).abs().max() < 1e-5
    return known


def weights_of(trainer: Any) -> Any:
    return {k: v.clone() for k, v in trainer.policy.state_dict().items()}


def test_columns_are_the_policy_at_sampling(tmp_path: Path) -> None:
    """Through TRL's shuffling, as the micro-batches reach the loss."""
    trainer = start(tmp_path, temperature=0.8, max_steps=2)
    seen: list[int] = []
    original = trainer._begin_update

    def listen() -> Any:
        known = (
            compare(trainer, rows, 0.8, weights_of(trainer)) for rows in trainer._buffered_inputs
        )
        seen.append(sum(known))
        return original()

    trainer._begin_update = listen
    trainer.train()
    assert seen == [16, 16]


def test_rows_that_are_kept_keep_their_scores(tmp_path: Path) -> None:
    """In a group that is not sampled again, and in one where a demonstration replaces a row."""
    for number, (rules, options) in enumerate(
        [
            (("wrong", "mixed"), {"all_wrong": "resample", "attempts": 2}),
            (("wrong", "mixed"), {"all_wrong": "demonstration"}),
        ]
    ):
        trainer = start(tmp_path / str(number), rules=rules, options=options, max_steps=1)
        made, weights = generations(trainer), weights_of(trainer)
        attempts: list[Any] = []
        original = trainer._sampled

        def listen(
            inputs: Any, plans: Any, original: Any = original, attempts: Any = attempts
        ) -> Any:
            attempts.append(plans)
            return original(inputs, plans)

        trainer._sampled = listen
        trainer.train()
        assert any(p.kept is not None for p in attempts[-1])
        [rows] = made
        demonstrations = int(rows["demo_mask"].any(1).sum())
        assert bool(demonstrations) == (options["all_wrong"] == "demonstration")
        assert compare(trainer, rows, 1.0, weights) == 16 - demonstrations


def unknown(rows: Any) -> bool:
    shape = rows["completion_ids"].shape
    return all(rows[name].shape == shape and rows[name].isnan().all() for name in COLUMNS)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prefix_rft", {"fast_generation": False}),
        ("prefix_rft", {"use_vllm": True, "vllm_mode": "colocate"}),
        ("self_sft", {"options": {"rollouts": "reference"}}),
    ],
)
def test_what_others_have_sampled_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any]
) -> None:
    """Another backend, and a reference that has the policy's own weights at first."""
    put_in_place(monkeypatch)
    trainer = start(tmp_path, method, max_steps=1, **settings)
    made = generations(trainer)
    trainer.train()
    assert all(map(unknown, made))
    assert made


def test_columns_are_in_a_checkpoint(tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer = start(tmp_path, save_strategy="steps", save_steps=1, max_steps=2, **settings)
    before: list[Any] = []
    original = trainer.run_state.save

    def listen(folder: Path) -> None:
        if not before:
            before.extend(trainer._buffered_inputs)
        original(folder)

    trainer.run_state.save = listen
    trainer.train()
    again = start(tmp_path, max_steps=2, **settings)
    again.run_state.load(tmp_path / "checkpoint-1")
    for saved, read in zip(before, again._buffered_inputs, strict=True):
        for name in COLUMNS:
            assert torch.equal(saved[name].isnan(), read[name].isnan())
            assert torch.equal(saved[name].nan_to_num(), read[name].nan_to_num())
    assert not before[0]["policy_entropy"].isnan().all()


# ---- prefixes ------------------------------------------------------------------------------------


def asked(trainer: Any) -> list[int]:
    """The optimizer steps at which entropies of prefixes are asked of a forward."""
    found: list[int] = []
    original = trainer.forward.prefix_entropy

    def listen(rows: Any) -> Any:
        found.append(trainer.state.global_step)
        return original(rows)

    trainer.forward.prefix_entropy = listen
    return found


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [1, 2, 3]),
        ({"entropy_scope": "step"}, [1, 2, 3]),
        ({"entropy_scope": "row"}, [1, 2, 3]),
        ({"entropy_source": "rollout"}, []),
    ],
)
def test_which_updates_need_a_forward(
    tmp_path: Path, options: dict[str, str], wanted: list[int]
) -> None:
    """Two updates on a generation, twice, and one on the next: 0 and 4 are the first ones."""
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    trainer = start(tmp_path, options=options, max_steps=5, **settings)
    found = asked(trainer)
    trainer.train()
    assert found == wanted


@pytest.mark.parametrize("source", ["current", "rollout"])
def test_what_the_sampler_did_not_tell_is_asked_of_a_forward(tmp_path: Path, source: str) -> None:
    options = {"entropy_source": source}
    trainer = start(tmp_path, options=options, max_steps=1, fast_generation=False)
    found = asked(trainer)
    trainer.train()
    assert found == [0]


def test_the_same_tokens_are_kept_as_by_a_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that asks a forward each time ends with the same weights."""
    weights = []
    for number in range(2):
        if number:
            for place in ("update.selection", "rollout.credit"):
                module = f"prefix_rft.engines.trl.{place}"
                monkeypatch.setattr(f"{module}.known_entropy", lambda *args: None)
        trainer = start(tmp_path / str(number), temperature=0.9, max_steps=3)
        found = asked(trainer)
        trainer.train()
        assert found == ([0, 1, 2] if number else [])
        weights.append(weights_of(trainer))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Two:
    """This process and another one, which lacks so many entropies."""

    def __init__(self, lacking: int) -> None:
        self.lacking = lacking

    def sum(self, x: Any) -> Any:
        return x + self.lacking


def test_one_process_that_does_not_know_is_enough() -> None:
    """All take the same branch, whatever they know themselves."""
    rows = {"policy_entropy": torch.tensor([[1.0, 2.0, NAN], [NAN, 3.0, 4.0]])}
    wanted = torch.tensor([[True, True, False], [False, False, True]])
    alone, both = SimpleNamespace(sum=lambda x: x), Two(1)
    found = known_entropy(rows, wanted, alone)  # type: ignore[arg-type]
    assert found is not None
    assert found.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]]
    assert known_entropy(rows, wanted, both) is None  # type: ignore[arg-type]
    assert known_entropy(rows, ~wanted, alone) is None  # type: ignore[arg-type]
    nothing = torch.zeros_like(wanted)
    assert known_entropy({}, wanted, alone) is None  # type: ignore[arg-type]
    found = known_entropy({}, nothing, alone)  # type: ignore[arg-type]
    assert found is not None
    assert found.tolist() == [[0.0] * 3] * 2
