"""Loss and full gradient of real trainer steps equal plain torch, whatever the split."""

from pathlib import Path
from typing import Any

import plain
import pytest
import torch

from prefix_rft import PrefixRFTTrainer
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

TEMPERATURE = 0.9
CONST = 24.0


def run(tmp_path: Path, **overrides: Any) -> tuple[Any, plain.Recorder]:
    tokenizer = make_tokenizer()
    settings = {"temperature": TEMPERATURE, "learning_rate": 3e-3, **overrides}
    recorder = plain.Recorder()
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


def check_steps(records: list[plain.Record], num_iterations: int) -> list[float]:
    """Every recorded step against the second computation; returns its largest |ratio - 1|."""
    model = make_model(make_tokenizer(), layers=2)
    spreads = []
    for number, record in enumerate(records):
        at_rollout = records[number - number % num_iterations].weights
        model.load_state_dict(at_rollout)
        with torch.no_grad():
            old = [plain.logp_and_entropy(model, r, TEMPERATURE)[0] for r in record.rows]
        model.load_state_dict(record.weights)
        adv = plain.advantages(record.rows)
        loss, gradient = plain.step(
            model, record.rows, old, adv, temperature=TEMPERATURE, fraction=0.2, const=CONST
        )
        assert record.loss == pytest.approx(loss, rel=1e-5, abs=1e-8)
        assert plain.relative_error(record.gradient, gradient) < 1e-5
        with torch.no_grad():
            new = [plain.logp_and_entropy(model, r, TEMPERATURE)[0] for r in record.rows]
        spreads.append(
            max((a - b).exp().sub(1).abs().max().item() for a, b in zip(new, old, strict=True))
        )
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


@pytest.mark.parametrize("scope", ["minibatch", "step", "row"])
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
    adv = plain.advantages(generation)
    model = make_model(make_tokenizer(), layers=2)
    for number, record in enumerate(recorder.records):
        model.load_state_dict(first.weights)
        with torch.no_grad():
            old = [plain.logp_and_entropy(model, r, TEMPERATURE)[0] for r in record.rows]
        pools = {
            "minibatch": [record.rows],
            "step": [generation],
            "row": [[r] for r in record.rows],
        }
        keep = [k for pool in pools[scope] for k in plain.kept(model, pool, TEMPERATURE, 0.2)]
        offset = number * len(first.rows)
        mine = keep[offset : offset + len(record.rows)] if scope == "step" else keep
        model.load_state_dict(record.weights)
        original = plain.kept
        plain.kept = lambda *args, mine=mine: mine  # the selection is given, not recomputed
        try:
            _, gradient = plain.step(
                model,
                record.rows,
                old,
                adv[offset : offset + len(record.rows)],
                temperature=TEMPERATURE,
                fraction=0.2,
                const=CONST,
            )
        finally:
            plain.kept = original
        assert plain.relative_error(record.gradient, gradient) < 1e-5


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
        assert plain.relative_error(other, gradients[0]) < 1e-5


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
    assert plain.relative_error(*gradients) < 1e-5


def test_sorting_by_length_changes_nothing_but_padding(tmp_path: Path) -> None:
    gradients = []
    for sort in (True, False):
        _, recorder = run(
            tmp_path / str(sort),
            max_steps=1,
            gradient_accumulation_steps=4,
            per_device_train_batch_size=8,
            bucket_by_length=sort,
        )
        gradients.append(recorder.records[0].gradient)
    assert plain.relative_error(*gradients) < 1e-5
