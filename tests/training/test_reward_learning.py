"""Algorithm 1 of arXiv 2405.17888 from a recipe: stages, whose samples, which reference, resume."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from killed_runs import write_task
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.models import load_model
from prefix_rft.engines.setup import set_up
from prefix_rft.engines.trl import PrefixRFTTrainer
from prefix_rft.evaluation.samples import Request, drawn, renderer_of
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.recipe.reward_options import RewardLearning
from prefix_rft.support.display import Display
from prefix_rft.support.errors import UserError
from prefix_rft.training import reward_learning
from prefix_rft.training.reward_learning import lengths_of, rows_of_stage, seed_of
from prefix_rft.training.train import train

LEARNS = (
    "reward_learning={stages: 2, steps: 3, batch_size: 4, learning_rate: 0.01}",
    *("method=dr_grpo", "max_steps=4", "beta=0.1", "~reward", "use_cpu=true"),
)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The trainer of each stage, and the pairs that its reward model was trained on."""
    found: list[tuple[Any, Any]] = []
    learn, learn_from = reward_learning.learn_reward, reward_learning.train_reward_model

    def noted(setup: Any, stage: Any, trainer: Any, learnt: Any, display: Display) -> None:
        found.append((trainer, []))
        learn(setup, stage, trainer, learnt, display)

    def paired(model: Any, tokenizer: Any, pairs: Any, *rest: Any) -> Any:
        found[-1][1].extend(pairs)
        return learn_from(model, tokenizer, pairs, *rest)

    monkeypatch.setattr("prefix_rft.training.run.learn_reward", noted)
    monkeypatch.setattr(reward_learning, "train_reward_model", paired)
    return found


@pytest.mark.slow
def test_two_stages(recipe: Path, tmp_path: Path, seen: list[Any]) -> None:
    last = train(str(recipe), [*LEARNS, f"runs={tmp_path}"], QUIET)
    first = tmp_path / "run-1-dr_grpo"
    assert last == tmp_path / "run-2-dr_grpo"
    base = load_file(recipe.parent / "base/model.safetensors")
    for turn, (folder, (trainer, pairs)) in enumerate(zip((first, last), seen, strict=True)):
        # The KL is to the model that the first stage began with, in every stage.
        reference = trainer.ref_model.state_dict()
        assert all(torch.equal(reference[name], weight) for name, weight in base.items())
        # A stage's samples are those of the policy that it starts from, not of the one it leaves.
        start = str(recipe.parent / "base" if turn == 0 else first / "model")
        assert [row[1] for row in pairs] == samples(start, trainer, turn)
        demonstrations = trainer.train_dataset[IDS]
        assert [row[0] for row in pairs] == [
            [*trainer.renderer.prompt(p), *ids[0]]
            for p, ids in zip(trainer.train_dataset["prompt"], demonstrations, strict=True)
        ]
        record = json.loads((folder / "reward_learning.json").read_text())
        assert (record["turn"], record["pairs"]["number"]) == (turn, 8)
        assert record["log"][-1]["step"] == 3
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert any("rewards/learnt/mean" in line for line in lines)
    # The reward of the second stage goes on from that of the first.
    assert json.loads((last / "reward_learning.json").read_text())["decided_by"][
        "reward_from"
    ] == str((first / "reward_model").resolve())
    assert moved(first / "model", recipe.parent / "base") > 0
    assert moved(last / "model", first / "model") > 0


def samples(model: str, trainer: Any, turn: int) -> list[list[int]]:
    policy, tokenizer = load_model(model)
    args = trainer.args
    request = Request(1, args.temperature, args.max_completion_length, seed_of(args.seed, turn), 4)
    render = renderer_of(policy, tokenizer, request)
    rows = trainer.train_dataset
    parts = [ids for _, part in drawn(policy, render, rows, request) for ids in part]
    return [[*render.prompt(p), *ids] for p, ids in zip(rows["prompt"], parts, strict=True)]


def moved(one: Path, other: Path) -> float:
    a, b = (load_file(x / "model.safetensors") for x in (one, other))
    return max((a[n] - b[n]).abs().max().item() for n in a)


@pytest.mark.slow
def test_an_adapter_s_later_stages_compare_with_its_base(
    recipe: Path, tmp_path: Path, seen: list[Any]
) -> None:
    options = ["peft={r: 2, target_modules: [q_proj]}", f"runs={tmp_path}"]
    train(
        str(recipe), [*LEARNS, *options, f"reward_learning.model={recipe.parent / 'base'}"], QUIET
    )
    for trainer, _ in seen:
        assert list(trainer.policy.peft_config) == ["default"]  # so TRL takes the base


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "calls", "learns"),
    [
        ("pairs_of", 2, 1),
        ("train_reward_model", 2, 1),
        ("_begin_update", 5, 0),  # the second stage's first step, before any checkpoint
        ("_begin_update", 7, 0),  # behind one
    ],
)
def test_killed_and_resumed_to_the_bit(
    recipe: Path, tmp_path: Path, seen: list[Any], at: str, calls: int, learns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed in the second of two stages; a reward that has been learnt is not learnt again."""
    whole = train(str(recipe), [*LEARNS, f"runs={tmp_path / 'whole'}"], QUIET)
    again = [*LEARNS, f"runs={tmp_path / 'again'}"]
    target = PrefixRFTTrainer if at == "_begin_update" else reward_learning
    with monkeypatch.context() as patch:
        patch.setattr(target, at, stopping(getattr(target, at), calls))
        with pytest.raises(KeyboardInterrupt):
            train(str(recipe), again, QUIET)
    del seen[:]
    resumed = train(str(recipe), again, QUIET, resume=True)
    assert [len(pairs) > 0 for _, pairs in seen] == [bool(learns)]
    for run in ("run-1-dr_grpo", "run-2-dr_grpo"):
        for name in ("model", "reward_model"):
            one, other = (x.parent / run / name for x in (whole, resumed))
            assert moved(one, other) == 0.0, (run, name)


def stopping(original: Any, calls: int) -> Any:
    """The same function, which at one of its calls is interrupted."""
    done: list[None] = []

    def stops(*args: Any, **kwargs: Any) -> Any:
        done.append(None)
        if len(done) == calls:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return stops


def test_rows_of_the_stages() -> None:
    rows = Dataset.from_dict({"prompt": list("abcdefg")})
    three = [
        rows_of_stage(rows, RewardLearning(prompts_per_stage=3), turn, seed=5)["prompt"]
        for turn in range(3)
    ]
    assert len({*three[0], *three[1]}) == 6  # the next ones in each, and round again
    assert set(three[2]) > {x for x in "abcdefg" if x not in {*three[0], *three[1]}}
    assert rows_of_stage(rows, RewardLearning(), 1, seed=5)["prompt"] == rows["prompt"]


def test_what_length_alone_says() -> None:
    pairs = [([1] * 5, [1] * 3), ([1] * 5, [1] * 4), ([1] * 2, [1] * 4), ([1] * 3, [1] * 3)]
    found = lengths_of(pairs)
    # the demonstration is longer in 2, shorter in 1, equal in 1
    assert found == {"number": 4, "demonstration_longer_by": 0.25, "told_by_length": 0.625}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward_learning.stages=0"], "stages must be at least 1, got 0"),
        (["reward_learning.loss=hinge"], "unknown reward_learning.loss 'hinge'"),
        (["reward_learning.level=first"], "unknown reward_learning.level 'first'"),
        (["reward_learning.stepps=1"], "unknown option of reward_learning 'stepps'"),
        (["reward_learning.learning_rate=0"], "learning_rate must be positive"),
        (["reward_learning=5"], "must be a mapping of options, got 5"),
        (["method=sft", "~beta", "~num_generations"], "needs a method that samples"),
        (["reward={name: exact, weight: 0.5}"], "leave out its weights"),
        (["columns={demonstration: nothing}"], "nothing"),
        (["reward_learning.model=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_used(
    recipe: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(str(recipe), [*LEARNS, f"runs={tmp_path}", *overrides], QUIET)


def test_rows_without_a_demonstration(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learns from demonstrations, but no row has one"):
        train(str(recipe), [*LEARNS, f"runs={tmp_path}", "demonstration_fraction=0"], QUIET)


@pytest.mark.parametrize("text", ["{", "[]", '{"turn": 0}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "reward_learning.json").write_text(text)
    with pytest.raises(UserError, match=r"reward_learning\.json' is damaged"):
        reward_learning.record_in(tmp_path)


def test_the_reward_starts_from_the_revision_of_the_policy(recipe: Path) -> None:
    """But where it starts from a model of its own, or from that of the stage before."""
    init = "model_init_kwargs={revision: main, dtype: bfloat16}"
    with closing(set_up(RecipeFile.read(recipe, [*LEARNS, init]))) as setup:
        own = setup.recipe
        stage = reward_learning.LearningStage.of(setup)
    assert stage is not None
    assert stage.options_of(own)["revision"] == "main"
    assert stage.options_of(replace(own, turn=1)) == {}
    other = replace(stage, options=replace(stage.options, model="x"))
    assert other.options_of(own) == {}


def test_a_later_stage_without_the_reward_before_it(recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe.parent / "base", tmp_path / "run-1-dr_grpo" / "model")
    file = RecipeFile.read(recipe, LEARNS)
    settings = {"model": str(tmp_path / "run-1-dr_grpo" / "model")}
    with (
        closing(set_up(file, 1, **settings)) as setup,
        pytest.raises(UserError, match=r"which is not in .* begin again"),
    ):
        reward_learning.LearningStage.of(setup)
