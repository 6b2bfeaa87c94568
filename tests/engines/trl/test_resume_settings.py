"""A run that goes on with other settings: they act at once and exactly, or it is refused."""

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainers import imitation_trainer, rollout_trainer
from transformers import TrainerCallback

from prefix_rft import PrefixRFTConfig
from prefix_rft.engines.changes import AT_ONCE, NOTHING, WITH_ROLLOUTS, among
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.support.errors import UserError
from tables import rest_slow
from tiny import make_model, make_tokenizer

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
SCHEDULE: dict[str, Any] = {"lr_scheduler_type": "linear", "warmup_steps": 2}
STEPS = 6


class Watch(TrainerCallback):
    """The gradients, the rate and the weights of each step, as the optimizer has them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        named = model.named_parameters()
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        self.rates.append(optimizer.param_groups[0]["lr"])


def sft(folder: Path, watch: Any = None, optimizers: Any = (None, None), **overrides: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "max_steps": STEPS,
        **SAVING,
        **overrides,
    }
    callbacks = [] if watch is None else [watch]
    return imitation_trainer(
        folder, eval_rows=2, callbacks=callbacks, optimizers=optimizers, **settings
    )


def rl(folder: Path, watch: Any = None, **overrides: Any) -> Any:
    settings = {
        "num_generations": 4,
        "learning_rate": 1e-2,
        "max_steps": STEPS,
        "max_completion_length": 40,
        **SAVING,
        **overrides,
    }
    return rollout_trainer(folder, 8, callbacks=[] if watch is None else [watch], **settings)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of three steps of six, with a schedule that moves; RL within a generation."""
    found = {}
    for make in (sft, rl):
        folder = tmp_path_factory.mktemp("begun")
        more = {"steps_per_generation": 2, "gradient_accumulation_steps": 1} if make is rl else {}
        make(folder, **SCHEDULE, **more, save_total_limit=None, max_steps=3).train()
        found[make.__name__] = folder
    return found


def linear(step: int, base: float, warmup: int, total: int) -> float:
    """The rate of the update after ``step`` others."""
    if step < warmup:
        return base * step / warmup
    return base * (total - step) / (total - warmup)


def cosine(step: int, base: float, warmup: int, total: int) -> float:
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


SCHEDULES: list[tuple[dict[str, Any], list[float]]] = [
    ({"learning_rate": 1e-3}, [linear(s, 1e-3, 2, 6) for s in (3, 4, 5)]),
    ({"max_steps": 5}, [linear(s, 1e-2, 2, 5) for s in (3, 4)]),
    ({"warmup_steps": 4}, [linear(s, 1e-2, 4, 6) for s in (3, 4, 5)]),
    ({"lr_scheduler_type": "constant"}, [1e-2] * 3),
    (
        {"lr_scheduler_type": "cosine", "learning_rate": 3e-3},
        [cosine(s, 3e-3, 2, 6) for s in (3, 4, 5)],
    ),
    (
        {
            "lr_scheduler_type": "polynomial",
            "lr_scheduler_kwargs": {"lr_end": 1e-4, "power": 2.0},
            "learning_rate": 5e-3,
        },
        [(5e-3 - 1e-4) * (1 - (s - 2) / 4) ** 2 + 1e-4 for s in (3, 4, 5)],
    ),
]


@pytest.mark.parametrize(
    ("make", "changed", "rates"),
    rest_slow(
        ((make, *case) for make in (sft, rl) for case in SCHEDULES),
        lambda make, changed, rates: (make is rl) == ("learning_rate" in changed),
    ),
)
def test_the_rate_is_that_of_the_new_schedule_at_once(
    begun: dict[str, Path], tmp_path: Path, make: Any, changed: dict[str, Any], rates: list[float]
) -> None:
    more = {"steps_per_generation": 2, "gradient_accumulation_steps": 1} if make is rl else {}
    watch = Watch()
    trainer = make(tmp_path, watch, **{**SCHEDULE, **more, **changed})
    trainer.train(resume_from_checkpoint=str(begun[make.__name__] / "checkpoint-3"))
    assert watch.rates == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"weight_decay": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-3},
    ],
)
def test_the_weights_are_those_of_the_new_settings_and_the_old_moments(
    begun: dict[str, Path], tmp_path: Path, changed: dict[str, Any]
) -> None:
    """The update by torch's AdamW, built by hand on the checkpoint's weights and moments."""
    checkpoint = begun["sft"] / "checkpoint-2"
    watch = Watch()
    trainer = sft(tmp_path, watch, **{**SCHEDULE, "max_steps": 6, **changed})
    trainer.train(resume_from_checkpoint=str(checkpoint))
    mine = make_model(make_tokenizer())
    mine.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    mine.tie_weights()
    decays = trainer.get_decay_parameter_names(mine)
    named = [(n, p) for n, p in mine.named_parameters() if n in decays]
    rest = [(n, p) for n, p in mine.named_parameters() if n not in decays]
    optimizer = AdamW(
        [
            {"params": [p for _, p in named], "weight_decay": changed.get("weight_decay", 0.0)},
            {"params": [p for _, p in rest], "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=(changed.get("adam_beta1", 0.9), changed.get("adam_beta2", 0.999)),
        eps=changed.get("adam_epsilon", 1e-8),
        fused=True,
    )
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    for i, (_, p) in enumerate([*named, *rest]):
        optimizer.state[p] = {k: v.clone() for k, v in saved[i].items()}
    for step, gradients in enumerate(watch.gradients, 2):
        for group in optimizer.param_groups:
            group["lr"] = linear(step, changed.get("learning_rate", 1e-2), 2, 6)
        for name, p in [*named, *rest]:
            p.grad = gradients[name]
        optimizer.step()
    for (name, p), own in zip(mine.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(p, own), name
    kept = torch.load(tmp_path / "checkpoint-6/optimizer.pt", weights_only=True)["param_groups"]
    assert kept[0]["betas"] == optimizer.param_groups[0]["betas"]


def test_a_trainer_that_is_used_again_does_not_keep_the_rate_of_then(tmp_path: Path) -> None:
    watch = Watch()
    trainer = sft(tmp_path, watch, **{**SCHEDULE, "max_steps": 4})
    trainer.train()
    trainer.args.learning_rate = 1e-3
    watch.rates.clear()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert watch.rates == pytest.approx([linear(s, 1e-3, 2, 4) for s in (2, 3)], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "changed", "words"),
    [
        (sft, {"optim": "sgd"}, r"optim adamw_\w+, and this run has sgd"),
        (sft, {"seed": 5}, "seed 42, and this run has 5"),
        (sft, {"per_device_train_batch_size": 1}, "per_device_train_batch_size 2, and this run"),
        (sft, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha None, and this run has 5.0"),
        (sft, {"method": "dft"}, "method"),
        (
            sft,
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
            "lr_scheduler_type linear, and this run has reduce_lr_on_plateau, but a schedule that",
        ),
        (rl, {"num_iterations": 2}, "num_iterations 1, and this run has 2"),
        (rl, {"num_generations": 2}, "num_generations 4, and this run has 2"),
        (rl, {"temperature": 0.5}, "temperature 1.0, and this run has 0.5, but rollouts made"),
        (rl, {"top_p": 0.9}, "top_p 1.0, and this run has 0.9, but rollouts made with the former"),
        (rl, {"method_options": {"entropy_keep": 0.5}}, "method_options None, and this run has"),
        (rl, {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs None, and this run has"),
    ],
)
def test_what_cannot_change_is_refused(
    begun: dict[str, Path], tmp_path: Path, make: Any, changed: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(begun[make.__name__], tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    more = {"steps_per_generation": 2, "gradient_accumulation_steps": 1} if make is rl else {}
    trainer = make(folder, **{**SCHEDULE, **more, **changed})
    checkpoint = folder / ("checkpoint-1" if make is rl else "checkpoint-2")
    with pytest.raises(UserError, match=words):
        trainer.verify_checkpoint(checkpoint)
    with pytest.raises(UserError, match=words):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_what_shapes_rollouts_changes_between_generations(
    begun: dict[str, Path], tmp_path: Path
) -> None:
    more = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "temperature": 0.5}
    trainer = rl(tmp_path, **{**SCHEDULE, **more, "max_steps": 3})
    trainer.train(resume_from_checkpoint=str(begun["rl"] / "checkpoint-2"))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("of", ["method with a memory", "method with a reference"])
def test_what_a_method_has_remembered_binds_it(tmp_path: Path, of: str) -> None:
    """Options of adaback; the length of a run in whose stages the reference moves (irft)."""
    if of == "method with a memory":
        settings: dict[str, Any] = {"method": "adaback", "max_steps": 1}
        changed: dict[str, Any] = {"method_options": {"ema": 0.5}}
        make, words = rl, "but method 'adaback' remembers"
    else:
        settings, changed = {"method": "irft", "max_steps": 1}, {"max_steps": 2}
        make, words = rl, "but method 'irft' has renewed its reference"
    make(tmp_path, **settings).train()
    with pytest.raises(UserError, match=words):
        make(tmp_path, **{**settings, **changed}).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


class Odd(AdamW):
    """An optimizer of which nobody knows what its groups hold."""


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [("optimizer", 0.5, "another weight_decay, and optimizer Odd"), ("schedule", 0.1, "schedule")],
)
def test_optimizers_and_schedules_of_ones_own(
    tmp_path: Path, kind: str, changed: float, words: str
) -> None:
    def make(value: float) -> Any:
        def optimizers(model: Any) -> Any:
            decay = value if kind == "optimizer" else 0.0
            found = Odd(model.parameters(), lr=1e-2, weight_decay=decay)
            plateau = ReduceLROnPlateau(found, factor=value) if kind == "schedule" else None
            return found, plateau

        trainer = sft(tmp_path, max_steps=2, save_steps=1)
        trainer.optimizer, trainer.lr_scheduler = optimizers(trainer.model)
        return trainer

    make(0.2).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    make(0.2).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(UserError, match=words):
        make(changed).train(resume_from_checkpoint=checkpoint)


def test_every_setting_is_in_one_class_at_most() -> None:
    names = {f.name for c in (PrefixRFTConfig, DemonstrationConfig) for f in fields(c)}
    for name in names:
        assert sum(among(name, x) for x in (AT_ONCE, WITH_ROLLOUTS, NOTHING)) <= 1, name
    for pattern in (*AT_ONCE, *WITH_ROLLOUTS):
        assert any(among(name, (pattern,)) for name in names), pattern


def test_a_checkpoint_holds_no_secret(begun: dict[str, Path], tmp_path: Path) -> None:
    sft(tmp_path, max_steps=1, hub_token="hf_x", model_init_kwargs={"token": "hf_x"}).train()
    text = (tmp_path / "checkpoint-1/run_state_0.json").read_text()
    assert "hf_x" not in text
    assert json.loads(text)["settings"]["learning_rate"] == 1e-2
