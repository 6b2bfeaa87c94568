"""Where TRL computes the same thing, we compute the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from second.step.update import relative_error
from tables import rest_slow
from tiny import (
    NO_RECOMPUTE,
    RECOMPUTE,
    make_config,
    make_model,
    make_rows,
    make_tokenizer,
    shaped_reward,
)

CASES = [
    ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    ("dr_grpo", {"aggregation": "token_mean"}, {"loss_type": "dapo", "scale_rewards": "none"}),
    (
        "dr_grpo",
        {"beta": 0.05},
        # TRL multiplies the k3 estimator by the ratio by default; GRPO's Eq. 4, and ours, do not.
        {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "beta": 0.05,
            "use_bias_correction_kl": False,
        },
    ),
    ("dr_grpo", {"delta": 1.3}, {"loss_type": "dr_grpo", "scale_rewards": "none", "delta": 1.3}),
]


def reward(completions: list[str], **columns: Any) -> list[float]:
    """The unknown token is text in our completions, and left out of TRL's."""
    return shaped_reward([c.replace("<unk>", "") for c in completions], **columns)


def losses_and_weights(trainer: Any) -> tuple[list[float], torch.Tensor]:
    found: list[float] = []
    original = trainer._compute_loss
    trainer._compute_loss = lambda *a, **k: (lambda x: (found.append(x.item()), x)[1])(
        original(*a, **k)
    )
    trainer.train()
    return found, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("method", "options", "theirs"),
    rest_slow(CASES, lambda method, options, theirs: "beta" in options or "delta" in options),
)
def test_without_prefix_the_loss_is_trls(
    tmp_path: Path, method: str, options: dict, theirs: dict
) -> None:
    """The same rollouts, four updates on two generations, clipped ratios included."""
    tokenizer = make_tokenizer()
    make_model(tokenizer, layers=2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shared: dict[str, Any] = {
        "max_steps": 4,
        "num_iterations": 2,
        "gradient_accumulation_steps": 2,
        # Plain gradient descent: Adam turns rounding of near-zero gradients into whole steps.
        "optim": "sgd",
        "learning_rate": 1.0,
        "temperature": 0.9,
    }
    ours = make_config(
        tmp_path / "ours",
        method=method,
        method_options=options,
        fast_generation=False,
        **shared,
    )
    known = set(GRPOConfig.__dataclass_fields__)
    base = {
        k: v
        for k, v in vars(make_config(tmp_path / "theirs", **shared)).items()
        if k in known and k not in ("generation_batch_size", "gradient_checkpointing")
    }
    arguments = {"train_dataset": make_rows(), "processing_class": tokenizer}
    path = str(tmp_path / "model")
    mine, my_weights = losses_and_weights(PrefixRFTTrainer(path, reward, ours, **arguments))
    trls, trl_weights = losses_and_weights(
        GRPOTrainer(path, reward, GRPOConfig(**{**base, **theirs}), **arguments)
    )
    # Rows are in other micro-batches, so what is the same is the loss of an update.
    pairs = [[sum(x[i : i + 2]) for i in range(0, len(x), 2)] for x in (mine, trls)]
    assert pairs[0] == pytest.approx(pairs[1], rel=2e-5, abs=1e-7)
    assert torch.allclose(my_weights, trl_weights, atol=1e-6)
    assert max(abs(x) for x in mine) > 1e-4


def test_prefix_rft_without_hybrid_rows_is_dr_grpo_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for method, options in (("dr_grpo", {}), ("prefix_rft", {"num_hybrid": 0})):
        tokenizer = make_tokenizer()
        trainer = PrefixRFTTrainer(
            make_model(tokenizer, layers=2),
            shaped_reward,
            make_config(tmp_path / method, max_steps=3, method=method, method_options=options),
            train_dataset=make_rows(),
            processing_class=tokenizer,
        )
        results.append(losses_and_weights(trainer))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def sft_settings(folder: Path, parts: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8 // parts,
        "gradient_accumulation_steps": parts,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **NO_RECOMPUTE,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
    }


def test_sft_equals_trls_and_ignores_the_split(tmp_path: Path) -> None:
    weights = []
    for parts in (1, 2, 4):
        tokenizer = make_tokenizer()
        trainer = DemonstrationTrainer(
            make_model(tokenizer, layers=2),
            DemonstrationConfig(**sft_settings(tmp_path / str(parts), parts)),
            train_dataset=make_rows(16),
            processing_class=tokenizer,
        )
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    rows = make_rows(16).select_columns(["prompt", "demonstration"])
    theirs = SFTTrainer(
        make_model(make_tokenizer(), layers=2),
        SFTConfig(**sft_settings(tmp_path / "trl", 1)),
        train_dataset=rows.rename_column("demonstration", "completion"),
        processing_class=make_tokenizer(),
    )
    theirs.train()
    weights.append([p.detach().clone() for p in theirs.model.parameters()])
    for other in weights[1:]:
        assert relative_error(other, weights[0]) < 1e-5


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"beta": 0.04, "num_iterations": 2}, marks=pytest.mark.slow),
        {"beta": 0.04, RECOMPUTE: True},
        pytest.param({"bf16": True}, marks=pytest.mark.slow),
    ],
    ids=["lora-kl", "lora-kl-checkpointing", "lora-bf16"],
)
def test_lora_runs(tmp_path: Path, overrides: dict[str, Any]) -> None:
    from peft import LoraConfig

    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer, layers=2),
        shaped_reward,
        make_config(tmp_path, max_steps=4, gradient_accumulation_steps=2, **overrides),
        train_dataset=make_rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=4),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    history = [h for h in trainer.state.log_history if "grad_norm" in h]
    assert len(history) == 4
    assert all(0 < h["grad_norm"] < 100 for h in history)
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in n for n in changed)


@pytest.mark.parametrize("overrides", [{RECOMPUTE: True}, {"bf16": True}])
def test_full_weights_with_checkpointing_or_bf16(tmp_path: Path, overrides: dict) -> None:
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer, layers=2),
        shaped_reward,
        make_config(tmp_path, max_steps=3, **overrides),
        train_dataset=make_rows(),
        processing_class=tokenizer,
    )
    trainer.train()
    assert all(h["grad_norm"] > 0 for h in trainer.state.log_history if "grad_norm" in h)
