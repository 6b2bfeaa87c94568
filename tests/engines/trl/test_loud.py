"""Numbers that are not finite stop a run in their step, with their name; so do tripwires."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainers import imitation_trainer, rollout_trainer
from transformers import TrainerCallback

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.nonfinite import first_bad
from prefix_rft.engines.tripwires import WIRES, Tripwires
from prefix_rft.engines.trl.safety.finite import Finite
from prefix_rft.engines.trl.safety.watch import ObservesMetrics
from prefix_rft.runs.checkpoints import checkpoints, fault
from prefix_rft.support.errors import RunError, UserError
from tables import rest_slow
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

NAME = "model.layers.0.mlp.up_proj.weight"
STEP = 2  # counted from 0: two are good
SAVING: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}


class At(TrainerCallback):
    """Do something when a step begins."""

    def __init__(self, step: int, act: Callable[[Any], None]) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs)


def rl(folder: Path, act: Callable[[Any], None], reward: Any = shaped_reward, **more: Any) -> Any:
    settings = {"gradient_accumulation_steps": 2, **SAVING, **more}
    return rollout_trainer(folder, reward=reward, callbacks=[At(STEP, act)], **settings)


def sft(folder: Path, act: Callable[[Any], None], **more: Any) -> Any:
    return imitation_trainer(folder, callbacks=[At(STEP, act)], **{**SAVING, **more})


def weight_of(known: Any) -> torch.nn.Parameter:
    return known["model"].get_parameter(NAME)


def spoil_gradient(known: Any) -> None:
    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient.index_fill(0, torch.tensor([3]), torch.nan)

    handle = weight_of(known).register_hook(spoil)


def spoil_state(known: Any) -> None:
    known["optimizer"].state[weight_of(known)]["exp_avg_sq"][5] = torch.inf


def spoil_weight(known: Any) -> None:
    weight_of(known).data[7, 1] = torch.nan


def spoil_logits(training: bool, row: int = 0) -> Callable[[Any], None]:
    """From now on, in the forwards of training or of sampling, in one row of each batch."""

    def act(known: Any) -> None:
        def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            if known["model"].training != training or torch.is_grad_enabled() != training:
                return output
            output = output.clone()
            # In training rows are packed: the last token of the last of them.
            output[(0, -1) if training else row] = torch.nan
            return output

        known["model"].model.norm.register_forward_hook(spoil)

    return act


FAULTS = {
    "gradient": (spoil_gradient, rf"step 3 .*the gradient of {NAME} is not finite"),
    "optimizer": (spoil_state, rf"step 3 .*optimizer's state of {NAME} \(exp_avg_sq\)"),
    "logits": (
        spoil_logits(True),
        r"step 3 .*the log-prob of token \d+ of a row of example \d+ is nan",
    ),
    "logits of the sampler": (
        spoil_logits(False, 0),
        r"no probabilities for token 1 behind prompt \d+ .*not finite, and its weights are finite",
    ),
    "weight": (spoil_weight, rf"no probabilities for token 1 .*the weight {NAME} is not finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_finite_is_named_in_its_step(tmp_path: Path, name: str) -> None:
    act, words = FAULTS[name]
    with pytest.raises(RunError, match=words):
        rl(tmp_path, act).train()
    assert list(checkpoints(tmp_path)) == [1, 2]
    assert [fault(p) for p in checkpoints(tmp_path).values()] == [None, None]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        FAULTS["gradient"],
        FAULTS["optimizer"],
        (spoil_weight, rf"step 3 .*the weight {NAME} is not finite"),
        (spoil_logits(True), r"step 3 .*the log-prob of token \d+ of row 1 of the step is nan"),
    ],
    ids=["gradient", "optimizer", "weight", "logits"],
)
def test_imitation_too(tmp_path: Path, act: Any, words: str) -> None:
    with pytest.raises(RunError, match=words):
        sft(tmp_path, act).train()
    assert list(checkpoints(tmp_path)) == [1, 2]


def test_padding_may_hold_anything_and_the_first_fault_is_named(tmp_path: Path) -> None:
    finite = sft(tmp_path, lambda known: None).finite
    values = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0]])

    def look(mask: list[list[bool]], name: str, **log_probs: Any) -> None:
        batch = {"old_logp_BT": None, "ref_logp_BT": None, **log_probs}
        rows: Any = SimpleNamespace(response_mask_BT=torch.tensor(mask), **batch)
        finite.rows(rows, str, {name: torch.zeros(2, 2) if log_probs else values})

    look([[True, False], [False, True]], "x")
    assert finite.seen is None
    look([[True, True], [False, True]], "x")
    assert finite.seen == "the x of token 1 of 0 is nan"
    look([[True, True], [True, True]], "z")
    assert finite.seen == "the x of token 1 of 0 is nan"
    for name, words in (("old_logp_BT", "old log-prob"), ("ref_logp_BT", "reference log-prob")):
        finite.seen = None
        look([[True, False], [True, True]], "x", **{name: values})
        assert finite.seen == f"the {words} of token 0 of 1 is inf"


def test_a_loss_counts_in_its_own_step(tmp_path: Path) -> None:
    trainer = sft(tmp_path, lambda known: None, on_nonfinite="skip")
    trainer.train()
    now = (trainer.model, trainer.optimizer, trainer.state.global_step)
    for loss, skipped in ((torch.nan, 1), (0.5, 1), (torch.inf, 2), (0.5, 2)):
        trainer.finite.loss(torch.tensor(loss))
        trainer.finite.before_update(*now, scaled=False)
        assert trainer.finite.skipped == skipped
    for seen, skipped in (("a log-prob", 3), (None, 3)):  # what a row showed, too
        trainer.finite.seen = seen or trainer.finite.seen
        trainer.finite.loss(torch.tensor(0.5))
        trainer.finite.before_update(*now, scaled=False)
        assert trainer.finite.skipped == skipped


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tripwire_steps": 0}, "tripwire_steps must be at least 1, got 0"),
        ({"nonfinite_limit": -1}, "nonfinite_limit must be at least 0, got -1"),
        ({"on_nonfinite": "warn"}, "unknown on_nonfinite 'warn'"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config(tmp_path, **settings)


def test_a_reward_is_named(tmp_path: Path) -> None:
    calls = []

    def spotty(completions: list[str], **kwargs: Any) -> list[float]:
        calls.append(1)
        rewards = [0.1 * (i % 3) for i in range(len(completions))]
        if len(calls) == STEP + 1:
            rewards[5] = float("nan")
        return rewards

    with pytest.raises(UserError, match="'spotty', completion 5: the reward is nan"):
        rl(tmp_path, lambda known: None, spotty).train()
    assert list(checkpoints(tmp_path)) == [1, 2]


def test_a_step_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No weight moves, also not by what the optimizer remembers; then the run goes on."""
    trainer = rl(tmp_path, spoil_gradient, on_nonfinite="skip", weight_decay=0.1)
    seen: dict[int, torch.Tensor] = {}

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights = [p.detach().flatten() for p in kwargs["model"].parameters()]
            seen[state.global_step] = torch.cat(weights).clone()

    trainer.add_callback(Look())
    with caplog.at_level(logging.WARNING, "prefix_rft"):
        trainer.train()
    moved = [not torch.equal(seen[k], seen[k + 1]) for k in range(1, 5)]
    assert moved == [True, False, True, True]
    assert f"step 3 is left out: the gradient of {NAME} is not finite (1 so far)" in caplog.text
    assert trainer.finite.skipped == 1
    again = rl(tmp_path, lambda known: None, on_nonfinite="skip", weight_decay=0.1)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.finite.skipped == 1
    with pytest.raises(RunError, match=r"nonfinite_limit \(0\) steps were left out"):
        rl(tmp_path / "none", spoil_gradient, on_nonfinite="skip", nonfinite_limit=0).train()


class AfterUpdate(TrainerCallback):
    """Do something when a step ends."""

    def __init__(self, step: int, act: Callable[[Any], None]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs)


@pytest.mark.parametrize("act", [spoil_weight, spoil_state])
def test_what_an_update_has_spoiled_is_not_saved(tmp_path: Path, act: Any) -> None:
    """The last good checkpoint stays, also where one is kept."""
    trainer = sft(tmp_path, lambda known: None, save_total_limit=1)
    trainer.add_callback(AfterUpdate(3, act))
    with pytest.raises(RunError, match=rf"after step 3 the .*{NAME}.* so nothing is saved"):
        trainer.train()
    assert list(checkpoints(tmp_path)) == [2]
    assert fault(tmp_path / "checkpoint-2") is None


def test_a_model_that_the_last_update_has_spoiled_is_not_saved(tmp_path: Path) -> None:
    trainer = sft(tmp_path, lambda known: None)
    trainer.train()
    trainer.model.get_parameter(NAME).data[0, 0] = torch.inf
    with pytest.raises(RunError, match=f"after step 5 the weight {NAME} is not finite"):
        trainer.save_whole_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_scaler_leaves_the_step_out_itself(tmp_path: Path) -> None:
    """It must find gradients to look at, or it fails."""
    trainer = sft(tmp_path, lambda known: None, on_nonfinite="skip")
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    trainer.finite._leave_out(model, "the loss is nan", 0, scaled=True)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)


def test_a_process_may_hold_nothing_of_a_tensor() -> None:
    parts = [("a", torch.empty(0)), ("b", torch.ones(2)), ("c", torch.tensor([torch.nan]))]
    assert first_bad(parts) == "c"
    assert first_bad(parts[:2]) is None
    assert first_bad(parts[:1]) is None
    # Finite, though its square is not; and a bad one behind it.
    large = ("large", torch.tensor([1e30, -1e30]))
    assert first_bad([*parts[:2], large]) is None
    assert first_bad([large, *parts]) == "c"


def test_skipping_cannot_be_had_with_deepspeed() -> None:
    """It has made its update before anyone can look."""
    alone: Any = None
    with pytest.raises(UserError, match="on_nonfinite: skip cannot be had with DeepSpeed"):
        Finite(alone, "skip", 10, deepspeed=True)
    with pytest.raises(RunError, match="step 2 stopped after its update: the loss is nan"):
        Finite(alone, "stop", 10, deepspeed=True)._stop("the loss is nan", 1)


# ---- tripwires ---------------------------------------------------------------------------------

GOOD = {
    "loss": 0.1,
    "reward": 0.5,
    "reward_std": 0.2,
    "rewards/ungraded": 0.1,
    "completions/clipped_ratio": 0.5,
    "trained/token_share": 0.7,
    "grad_norm": 0.1,
    "entropy": 1.0,
    "sampling/sampling_logp_difference/mean": 0.01,
    "demonstrations/missing": 0.9,
}
BAD = {
    "constant_reward": {"reward_std": 0.0},
    "all_ungraded": {"rewards/ungraded": 1.0, "reward": None, "reward_std": None},
    "all_truncated": {"completions/clipped_ratio": 1.0},
    "nothing_trained": {"trained/token_share": 0.0, "grad_norm": 0.0},
    "zero_gradient": {"grad_norm": 0.0},
    "entropy_collapsed": {"entropy": 0.009},
    "stale_sampler": {"sampling/sampling_logp_difference/mean": 0.6},
    "no_demonstrations": {"demonstrations/missing": 1.0},
}


@pytest.mark.parametrize("name", WIRES)
def test_a_sign_counts_when_it_shows_without_a_break(name: str) -> None:
    wires = Tripwires.read({name: "stop"}, 3)
    bad = GOOD | BAD[name]
    quiet = [wires.observe(line, 1) for line in (GOOD, bad, bad, GOOD, bad, bad, {"loss": 0.0})]
    assert not any(quiet)  # the last line says nothing: neither a sign nor a break
    assert [action for action, _ in wires.observe(bad, 1)] == ["stop"]
    assert not wires.observe(bad, 1)  # told once
    assert not wires.observe(GOOD, 1)
    assert wires.observe(bad, 3)[0][1].startswith(f"{name}: for 3 steps ")
    off = Tripwires.read({name: False}, 1)
    assert not off.observe(bad, 5)


def test_a_reward_that_changes_between_steps_is_not_constant() -> None:
    wires = Tripwires.read(None, 2)
    for reward in (0.0, 1.0, 0.0, 1.0):
        assert not wires.observe(GOOD | {"reward_std": 0.0, "reward": reward}, 1)


def test_bounds() -> None:
    """Just beside them there is no sign."""
    wires = Tripwires.read(None, 1)
    beside = {"entropy": 0.011, "sampling/sampling_logp_difference/mean": 0.099}
    assert not wires.observe(GOOD | beside, 5)


def test_a_resumed_run_counts_from_its_last_line() -> None:
    """Not from the checkpoint, and not from the beginning."""
    seen: list[int] = []
    wires: Any = SimpleNamespace(observe=lambda line, steps: seen.append(steps) or [])
    looks = ObservesMetrics(wires, seen.append, lambda: 4)
    looks.on_train_begin(None, None, None)
    for step in (6, 9):
        looks.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 0.1})
    assert seen == [2, 3]


def test_imitation_explores_nothing() -> None:
    wires = Tripwires.read(None, 1)
    assert not wires.observe({"loss": 0.1, "entropy": 0.0, "grad_norm": 1.0}, 5)


@pytest.mark.parametrize(
    "method", rest_slow(["prefix_rft", "srft", "chord"], lambda method: method == "chord")
)
def test_demonstrations_are_missed_where_there_are_none(tmp_path: Path, method: str) -> None:
    """Not where none of them is a prefix: a whole one is a demonstration, too."""
    few = make_rows(12).map(
        lambda row, i: {"demonstration": row["demonstration"] if i % 2 else ""}, with_indices=True
    )
    for rows, expected in ((make_rows(), 0.0), (few, 0.5)):
        trainer = PrefixRFTTrainer(
            make_model(make_tokenizer()),
            shaped_reward,
            make_config(
                tmp_path, method=method, max_steps=3, per_device_train_batch_size=8, logging_steps=3
            ),
            train_dataset=rows,
            processing_class=make_tokenizer(),
        )
        trainer.train()
        found = trainer.state.log_history[0]["demonstrations/missing"]
        assert found == 0.0 if not expected else 0.0 < found < 1.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"constant_rewards": "stop"}, "unknown tripwire 'constant_rewards'"),
        ({"constant_reward": "halt"}, "unknown action of tripwire 'constant_reward' 'halt'"),
        ("stop", "tripwires"),
    ],
)
def test_tripwires_that_cannot_be(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises((UserError, ValueError), match=words):
        make_config(tmp_path, tripwires=given)


def test_a_run_is_stopped_or_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def flat(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.5] * len(completions)

    settings = {"tripwires": {"constant_reward": "stop"}, "tripwire_steps": 3, "logging_steps": 1}
    with (
        caplog.at_level(logging.WARNING, "prefix_rft"),
        pytest.raises(RunError, match="stopped at step 3 by the tripwire constant_reward"),
    ):
        rl(tmp_path, lambda known: None, flat, **settings).train()
    assert "step 3: tripwire nothing_trained: for 3 steps" not in caplog.text
    with caplog.at_level(logging.WARNING, "prefix_rft"):
        rl(tmp_path, lambda known: None, flat, tripwire_steps=3, logging_steps=1).train()
    assert "step 3: tripwire constant_reward: for 3 steps every rollout" in caplog.text
    assert "step 3: tripwire nothing_trained: for 3 steps" in caplog.text
