"""A run resumed from any of its checkpoints ends with the same bits as the run itself."""

import json
import re
import shutil
import signal
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainers import imitation_trainer, rollout_trainer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback
from trl.trainer.utils import RepeatSampler

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.safety.interrupt import StopOnSignal
from prefix_rft.runs.checkpoints import checkpoints, fault, newest_whole, rotate
from prefix_rft.support.errors import UserError
from tables import rest_slow
from tiny import make_config, make_rows, make_tokenizer, shaped_reward

CLOCKS = ("time", "_per_second")
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
BUFFERED = {"gradient_accumulation_steps": 2, "steps_per_generation": 4}


def rl(folder: Path, method: str = "prefix_rft", rows: int = 32, **overrides: Any) -> Any:
    """Rows of 4 in a micro-batch."""
    settings = {"log_rollouts": True, "method": method, "num_generations": 4, **SAVING}
    return rollout_trainer(folder, rows, **{**settings, **overrides})


def sft(folder: Path, **overrides: Any) -> Any:
    """Two micro-batches of 3 a step, 14 rows."""
    return imitation_trainer(folder, eval_rows=4, **{**SAVING, **overrides})


def evidence(trainer: Any, folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, less what a clock says."""
    lines = [
        {k: v for k, v in line.items() if not any(c in k for c in CLOCKS)}
        for line in trainer.state.log_history
    ]
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    moments = [
        {k: v.clone() for k, v in s.items()}
        for s in trainer.optimizer.state_dict()["state"].values()
    ]
    rollouts = {p.name: p.read_text() for p in (folder / "rollouts").glob("*")}
    return {
        "lines": lines,
        "weights": weights,
        "moments": moments,
        "rate": trainer.lr_scheduler.state_dict(),
        "memory": vars(trainer.method_state),
        "rollouts": rollouts,
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def early(completions: list[str], **kwargs: Any) -> list[float]:
    """Right from the first equals sign on, which is the fourth token of a demonstration."""
    return [float("=" in c) for c in completions]


def experts(folder: Path, **overrides: Any) -> Any:
    """A mixture of experts, which transformers writes under other names than it has in memory."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
    )
    model: Any = Qwen3MoeForCausalLM(config)
    settings: dict[str, Any] = {"log_rollouts": True, "num_generations": 4, **SAVING}
    return PrefixRFTTrainer(
        model,
        shaped_reward,
        make_config(folder, **{**settings, **overrides}),
        train_dataset=make_rows(8),
        processing_class=tokenizer,
    )


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a mixture of experts": (experts, {"max_steps": 3}),
    "one generation a step": (rl, {"max_steps": 3, "gradient_accumulation_steps": 4}),
    "buffer": (rl, {**BUFFERED, "max_steps": 5}),
    "two iterations": (rl, {**BUFFERED, "num_iterations": 2, "max_steps": 6}),
    "later epochs": (rl, {**BUFFERED, "rows": 8, "max_steps": 10, "learning_rate": 1e-2}),
    "a method with a memory": (rl, {**BUFFERED, "method": "adaback", "rows": 8, "max_steps": 6}),
    "guarded prefixes": (
        rl,
        {
            **BUFFERED,
            "method": "control",
            "method_options": {"plain": 0.5, "own": True},
            "reward": early,
            "guard_prefix_leak": True,
            "log_prefix_leak": True,
            "rows": 8,
            "max_steps": 6,
        },
    ),
    "lines of three steps": (
        rl,
        {**BUFFERED, "max_steps": 7, "logging_steps": 3, "lr_scheduler_type": "cosine"},
    ),
    "imitation, third epoch": (sft, {"num_train_epochs": 3}),
    "imitation by length": (
        sft,
        {"num_train_epochs": 3, "train_sampling_strategy": "group_by_length"},
    ),
}


def resume_and_compare(tmp_path: Path, name: str, steps: Sequence[int] | None) -> None:
    """From some steps, or from all."""
    make, settings = RUNS[name]
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    expected = evidence(whole, tmp_path / "whole")
    for step in steps or range(1, whole.state.max_steps):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        again = make(folder, **settings)
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        found = evidence(again, folder)
        for part in expected:
            assert same(found[part], expected[part]), f"{part} from step {step}"
        assert {p.name for p in folder.iterdir()} == {
            p.name for p in (tmp_path / "whole").iterdir()
        }


@pytest.mark.parametrize(
    ("name", "step"),
    rest_slow(
        [
            ("two iterations", 3),
            ("later epochs", 7),
            ("a method with a memory", 3),
            ("guarded prefixes", 3),
            ("lines of three steps", 4),
            ("imitation, third epoch", 7),
            ("imitation by length", 7),
        ],
        lambda name, step: name in ("two iterations", "imitation, third epoch"),
    ),
)
def test_from_a_step(tmp_path: Path, name: str, step: int) -> None:
    """In the middle of a generation, and in the third epoch of imitation at its first step."""
    resume_and_compare(tmp_path, name, [step])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RUNS)
def test_from_every_step(tmp_path: Path, name: str) -> None:
    resume_and_compare(tmp_path, name, None)


def test_every_epoch_has_the_order_that_trl_gives_it(tmp_path: Path) -> None:
    make, settings = RUNS["later epochs"]
    make(tmp_path, **settings | {"save_strategy": "no"}).train()
    found = [
        [x["example"] for x in map(json.loads, path.read_text().splitlines()) if x["row"] == 0]
        for path in sorted((tmp_path / "rollouts").glob("step_*"))
    ]
    order = RepeatSampler(range(8), 1, seed=make_config(tmp_path).seed)
    epochs = [list(order) for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    assert list(chain(*found)) == list(chain(*epochs))[: 5 * 4]


def test_what_a_run_goes_back_behind_is_gone(tmp_path: Path) -> None:
    """Its later checkpoints would belong to files that are no more."""
    rl(tmp_path, **BUFFERED, max_steps=3).train()
    short = rl(tmp_path, **BUFFERED, max_steps=2)
    short.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert list(checkpoints(tmp_path)) == [1, 2]


def test_checkpoints_of_another_folder_are_none_of_its_business(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-9").mkdir()
    sft(tmp_path, max_steps=3).train(resume_from_checkpoint=str(finished / "checkpoint-2"))
    assert sorted(checkpoints(tmp_path)) == [3, 9]
    assert list(checkpoints(finished)) == [1, 2]


def test_older_checkpoints_of_later_steps_go_first(tmp_path: Path) -> None:
    """A new run in the folder of a longer one must not lose its own."""
    for step in (10, 100, 200, 20, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert list(checkpoints(tmp_path)) == [9, 10, 20, 100, 200]  # 9 before 10
    rotate(tmp_path, 2, None, newest=20)
    assert list(checkpoints(tmp_path)) == [10, 20]
    rotate(tmp_path, 0, None, newest=20)
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-10"), newest=20)
    assert list(checkpoints(tmp_path)) == [10, 20]


def test_a_model_of_which_nothing_was_written_is_none(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = sft(tmp_path, max_steps=1)
    monkeypatch.setattr(trainer, "save_model", lambda *args: None)
    with pytest.raises(UserError, match=r"the model is lost.*nothing was written; a model that is"):
        trainer.save_whole_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("saves", ["steps", "epoch"])
def test_a_signal_within_an_epoch_of_one_line(tmp_path: Path, saves: str) -> None:
    """transformers ends the epoch with a line and a checkpoint although the run is to go on."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "logging_strategy": "epoch",
        "save_strategy": saves,
        "save_steps": 100,
    }
    whole = sft(tmp_path / "whole", **settings)
    whole.train()
    expected = evidence(whole, tmp_path / "whole")
    folder = tmp_path / "again"
    first = sft(folder, **settings)
    stop = StopOnSignal(first.processes, first.record, lambda words: None)

    class Tell(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stop.caught = signal.SIGTERM if state.global_step == 1 else None

    first.add_callback(Tell())
    first.add_callback(stop)
    first.train()
    assert stop.stopped
    assert list(checkpoints(folder)) == [2]
    again = sft(folder, **settings)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    found = evidence(again, folder)
    assert same(found["lines"], expected["lines"])
    assert same(found["weights"], expected["weights"])


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    """Nothing is left of those in between, and the state names the best where it lies."""
    trainer = sft(
        tmp_path,
        max_steps=5,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best is the first
        load_best_model_at_end=True,
    )
    trainer.train()
    losses = [x["eval_loss"] for x in trainer.state.log_history if "eval_loss" in x]
    best = 1 + losses.index(max(losses))
    assert best == 1
    assert list(checkpoints(tmp_path)) == [best, 4, 5]
    for path in checkpoints(tmp_path).values():
        state = json.loads((path / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == tmp_path / f"checkpoint-{best}"
        assert fault(path) is None
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert torch.equal(trainer.model.model.norm.weight, saved["model.norm.weight"])


def spoil(path: Path, damage: str) -> None:
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", "short", r"model.safetensors has \d+ bytes, not \d+"),
        ("optimizer.pt", "flipped", "optimizer.pt is not what was written"),
        ("trainer_state.json", "gone", "trainer_state.json is missing"),
        ("manifest.json", "short", "manifest.json is damaged"),
        ("manifest.json", "gone", "it has no manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    finished: Path, tmp_path: Path, name: str, damage: str, words: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "checkpoint-2" / name, damage)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == tmp_path / "checkpoint-1"
    assert len(said) == 1
    assert re.search(rf"checkpoint-2': {words}", said[0])
    with pytest.raises(UserError, match=f"checkpoint-2' is damaged: {words}"):
        sft(tmp_path, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    sft(folder, max_steps=2).train()
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 1}, "was made with seed 42, and this run has 1"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps 2"),
    ],
)
def test_another_order_of_rows_is_refused(
    finished: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    trainer = sft(tmp_path, max_steps=4, **settings)
    with pytest.raises(UserError, match=words):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-2"))


def test_weights_alone_are_no_place_to_go_on_from(tmp_path: Path) -> None:
    sft(tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(UserError, match="saved with save_only_model"):
        sft(tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_no_checkpoint_holds_a_pickle(finished: Path) -> None:
    names = {p.name for p in (finished / "checkpoint-2").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "optimizer.pt", "scheduler.pt"),
        *("rng_state.pth", "trainer_state.json", "method_state.json", "run_state_0.json"),
        "manifest.json",
    }
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(finished / "checkpoint-2" / name, weights_only=True)
