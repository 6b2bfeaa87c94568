"""Loss and full gradient of real trainer steps equal plain torch, whatever the split."""

from pathlib import Path
from typing import Any

import pytest

from prefix_rft import PrefixRFTTrainer
from second.step.formulas import prefix_rft
from second.step.trl_run import Record, Recorder, scores, update_of
from second.step.update import relative_error, selected
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

TEMPERATURE = 0.9
CONST = 24.0


def run(tmp_path: Path, **overrides: Any) -> tuple[Any, Recorder]:
    tokenizer = make_tokenizer()
    settings = {"temperature": TEMPERATURE, "learning_rate": 3e-3, **overrides}
    recorder = Recorder()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer, layers=2),
        shaped_reward,
        make_config(tmp_path, **settings),
        train_dataset=make_rows(),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    recorder.watch(trainer)
    trainer.train()
    return trainer, recorder


def check_steps(records: list[Record], num_iterations: int) -> list[float]:
    """Every recorded step against the second computation; returns its largest |ratio - 1|."""
    spreads = []
    for number, record in enumerate(records):
        at_rollout = records[number - number % num_iterations]
        step = update_of(record, at_rollout.weights, temperature=TEMPERATURE)
        loss = prefix_rft(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-8)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
        ratios = map(step.ratio, range(len(record.rows)))
        spreads.append(max((r - 1).abs().max().item() for r in ratios))
    return spreads


@pytest.mark.parametrize("num_iterations", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_loss_and_gradient_equal_plain_torch(tmp_path: Path, num_iterations: int) -> None:
    _, recorder = run(
        tmp_path,
        max_steps=4,
        num_iterations=num_iterations,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=16,
    )
    assert len(recorder.records) == 4
    hybrid = [r for r in recorder.records[0].rows if r.prefix]
    assert len(hybrid) == 4
    spreads = check_steps(recorder.records, num_iterations)
    moved = spreads[1]
    assert moved > 0.01 if num_iterations == 2 else moved < 1e-5


@pytest.mark.parametrize(
    "scope", [pytest.param("minibatch", marks=pytest.mark.slow), "step", "row"]
)
def test_several_updates_per_generation(tmp_path: Path, scope: str) -> None:
    """Two optimizer steps on the rows of one generation: windows, old log-probs, pools."""
    _, recorder = run(
        tmp_path,
        max_steps=2,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        per_device_train_batch_size=8,
        method_options={"entropy_scope": scope, "entropy_source": "rollout"},
    )
    first, second = recorder.records
    generation = [*first.rows, *second.rows]
    _, entropies = scores(first.weights, generation, TEMPERATURE)
    pools = {
        "minibatch": [range(16), range(16, 32)],
        "step": [range(32)],
        "row": [range(i, i + 1) for i in range(32)],
    }
    keep = {
        (pool[i], t)
        for pool in pools[scope]
        for i, t in selected([generation[j] for j in pool], [entropies[j] for j in pool], 0.2)
    }
    for number, record in enumerate(recorder.records):
        offset = 16 * number
        assert record.rows == generation[offset : offset + 16]
        mine = {(i - offset, t) for i, t in keep if offset <= i < offset + 16}
        step = update_of(record, first.weights, temperature=TEMPERATURE)
        gradient = step.gradient(prefix_rft(step, keep=mine))
        assert relative_error(record.gradient, gradient) < 1e-5
        # The control: what the policy of this update is most uncertain of.
        other = step.gradient(prefix_rft(step))
        if number and scope == "minibatch":
            assert relative_error(record.gradient, other) > 1e-3


def test_the_split_into_micro_batches_changes_nothing(tmp_path: Path) -> None:
    gradients, lengths = [], []
    for parts in (1, 2, 4, 8):
        trainer, recorder = run(
            tmp_path / str(parts),
            max_steps=1,
            gradient_accumulation_steps=parts,
            per_device_train_batch_size=32 // parts,
        )
        gradients.append(recorder.records[0].gradient)
        lengths.append(sorted(len(r.completion) for r in recorder.records[0].rows))
        assert trainer.state.log_history[0]["prefix/kept"] == pytest.approx(0.2, abs=0.02)
    assert all(x == lengths[0] for x in lengths)
    for other in gradients[1:]:
        assert relative_error(other, gradients[0]) < 1e-5


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "sum_over_const"])
def test_every_normaliser_ignores_the_split(tmp_path: Path, aggregation: str) -> None:
    gradients = []
    for parts in (1, 4):
        _, recorder = run(
            tmp_path / str(parts),
            max_steps=1,
            gradient_accumulation_steps=parts,
            per_device_train_batch_size=32 // parts,
            method_options={"aggregation": aggregation},
        )
        gradients.append(recorder.records[0].gradient)
    assert relative_error(*gradients) < 1e-5


def test_savings_change_nothing_but_time(tmp_path: Path) -> None:
    gradients = []
    for number, savings in enumerate(["none", ["untrained"], ["packing"], "all"]):
        _, recorder = run(
            tmp_path / str(number),
            max_steps=1,
            gradient_accumulation_steps=4,
            per_device_train_batch_size=8,
            savings=savings,
        )
        gradients.append(recorder.records[0].gradient)
    for other in gradients[1:]:
        assert relative_error(other, gradients[0]) < 1e-6
