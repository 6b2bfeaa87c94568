"""``engine: verl``: a recipe as verl's settings, and what of it is refused. Needs no verl."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefix_rft.cli import main
from prefix_rft.engines.setup import configure
from prefix_rft.engines.verl import from_recipe as cluster
from prefix_rft.engines.verl import results
from prefix_rft.support.errors import UserError
from tiny import make_model, make_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples/cluster"
RECIPE = {
    "engine": "verl",
    "model": "org/model",
    "train_data": "train.jsonl",
    "reward": "exact",
    "max_steps": 20,
}


def write(folder: Path, **more: Any) -> str:
    (folder / "train.jsonl").write_text('{"prompt": "1+1", "answer": "2", "demonstration": "2"}\n')
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **more}))
    return str(path)


def settings(path: str, *overrides: str, resume: bool = False) -> dict[str, Any]:
    setup = configure(path, overrides)
    try:
        return cluster.settings(setup.recipe, setup.args, Path("runs/run"), resume)
    finally:
        setup.close()


def test_keys_of_the_trl_engine_become_verls(tmp_path: Path) -> None:
    more = {
        "method": {"name": "dr_grpo", "aggregation": "token_mean"},
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "num_generations": 4,
        "prompts_per_step": 6,
        "micro_batch_size": 3,
        "num_iterations": 2,
        "learning_rate": 2e-6,
        "warmup_steps": 5,
        "lr_scheduler_type": "cosine",
        "seed": 7,
        "top_k": 50,
        "verl": {"trainer": {"nnodes": 2}, "data.max_prompt_length": 99},
    }
    found = settings(write(tmp_path, **more))
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    expected = {
        "prefix_rft.method": "dr_grpo",
        "prefix_rft.method_options": {
            "aggregation": "token_mean",
            "epsilon": 0.1,
            "epsilon_high": 0.3,
        },
        "prefix_rft.folder": str(tmp_path),
        "prefix_rft.seed": 7,
        "data.seed": 7,
        "data.train_batch_size": 6,
        f"{actor}.ppo_mini_batch_size": 6,
        f"{actor}.ppo_micro_batch_size_per_gpu": 3,
        f"{actor}.ppo_epochs": 2,
        f"{actor}.optim.lr": 2e-6,
        f"{actor}.optim.lr_warmup_steps": 5,
        f"{actor}.optim.lr_scheduler_type": "cosine",
        f"{rollout}.n": 4,
        f"{rollout}.top_k": 50,
        "data.max_response_length": 512,  # TRL's default
        "trainer.total_training_steps": 20,
        "trainer.save_freq": 2,  # every tenth of the run
        "trainer.resume_mode": "disable",
        "trainer.nnodes": 2,
        "data.max_prompt_length": 99,
    }
    assert {k: found[k] for k in expected} == expected
    assert f"{actor}.use_dynamic_bsz" not in found
    assert found[f"{actor}.optim.clip_grad"] == 1.0
    assert found["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"] == 3
    more = ("save_strategy=no", "max_grad_norm=0", "warmup_steps=0.25")
    again = settings(write(tmp_path), *more, resume=True)
    assert again[f"{actor}.optim.clip_grad"] == 1e9  # no limit
    assert again[f"{actor}.optim.lr_warmup_steps"] == 5
    assert again["actor_rollout_ref.model.enable_gradient_checkpointing"] is True
    assert again["trainer.save_freq"] == -1
    assert again["trainer.resume_mode"] == "auto"
    assert again[f"{rollout}.top_k"] == -1
    assert again[f"{actor}.use_dynamic_bsz"] is True


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"engine": "nemo"}, "unknown engine 'nemo'"),
        ({"method": "sft"}, "method 'sft' does not run on verl: it never samples; use engine: trl"),
        ({"method": "relift"}, "does not run on verl: it sets prompts aside"),
        ({"rif": {}}, "recipe key 'rif' is not there with engine: verl"),
        ({"vllm_mode": "server"}, "recipe key 'vllm_mode' has no counterpart on verl"),
        ({"bf16": False}, "recipe key 'bf16' has no counterpart on verl"),
        ({"guard_prefix_leak": True}, "recipe key 'guard_prefix_leak' has no counterpart on verl"),
        ({"max_steps": -1, "save_steps": 5, "warmup_steps": 0.1}, "warmup_steps is a number of"),
        ({"max_steps": -1, "save_steps": 5, "num_train_epochs": 0.5}, "is a whole number, or"),
        ({"learning_rat": 1.0}, "unknown recipe key 'learning_rat': did you mean 'learning_rate'"),
        ({"lr_scheduler_type": "linear"}, "verl has the schedules constant, cosine, not 'linear'"),
        ({"engine": "trl", "verl": {"a": 1}}, "'verl' has no effect without engine: verl"),
        (
            {"eval_data": "v.jsonl", "eval_every": 4, "eval_every_samples": 2},
            "'eval_every_samples' is not there with engine: verl, which takes eval_samples at",
        ),
        (
            {"eval_data": "v.jsonl", "eval_every": 4, "keep": "best"},
            "'keep' is not there with engine: verl, which acts on no evaluation",
        ),
        ({"train_data": {"path": "x"}}, "train_data and eval_data are a file, folder or name"),
    ],
)
def test_what_verl_cannot_do_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(write(tmp_path, **more))


@pytest.mark.parametrize(
    ("more", "every"),
    [({}, -1), ({"eval_data": "v.jsonl"}, 10**9), ({"eval_data": "v.jsonl", "eval_every": 4}, 4)],
)
def test_verl_validates_along_the_way(tmp_path: Path, more: dict[str, Any], every: int) -> None:
    assert settings(write(tmp_path, **more))["trainer.test_freq"] == every


def test_a_share_of_an_unknown_number_of_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a save_steps below 1 is a share of max_steps"):
        settings(write(tmp_path, max_steps=-1))


def test_without_verl_a_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("prefix_rft.engines.verl.version", missing)
    recipe = write(tmp_path, runs=str(tmp_path / "runs"))
    assert main(["train", recipe]) == 2
    assert "pip install 'prefix-rft[verl]'" in capsys.readouterr().err


def test_check_looks_at_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefix_rft.engines.verl.from_recipe.find_spec", lambda name: None)
    make_model(make_tokenizer()).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    more = {"model": "model", "num_generations": 4, "max_completion_length": 24}
    recipe = write(tmp_path, **more)
    main(["check", recipe])
    assert "engine verl: verl is not installed here" in capsys.readouterr().out
    assert main(["check", recipe, "max_steps=-1"]) == 2
    assert "a save_steps below 1 is a share of max_steps" in capsys.readouterr().err


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_recipes_in_docs_are_those_of_the_paper(nodes: int) -> None:
    found = settings(str(EXAMPLES / f"qwen2.5-math-7b-{nodes}x8.yaml"))
    assert found["trainer.nnodes"] == nodes
    assert found["data.train_batch_size"] == 128
    assert found["actor_rollout_ref.actor.ppo_mini_batch_size"] == 64
    assert found["actor_rollout_ref.rollout.n"] == 8
    assert found["trainer.total_training_steps"] == 500
    assert found["data.max_response_length"] == 8192
    assert found["actor_rollout_ref.actor.optim.lr"] == 1e-6
    assert found["actor_rollout_ref.actor.optim.weight_decay"] == 0.01


def test_metrics_are_taken_over(tmp_path: Path) -> None:
    """From the files of all parts of a run; a step that was done again counts once."""
    first = [{"step": s, "data": {"actor/loss": s / 10, "prefix/low": 0.5}} for s in (1, 2, 3)]
    second = [{"step": 1, "data": {"val": 0.1}}, {"step": 2, "data": {"actor/loss": 0.7}}]
    for i, lines in enumerate((first, second), 1):
        text = "".join(json.dumps(x) + "\n" for x in lines)
        (tmp_path / f"verl-{i:03d}.jsonl").write_text(text + '{"step": 9, "da')
    results.take_metrics(tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.1, "prefix/low": 0.5, "val": 0.1},
        {"step": 2, "loss": 0.7},
    ]


@pytest.mark.parametrize(("strategy", "backend"), [("fsdp2", "fsdp"), ("megatron", "megatron")])
def test_how_to_merge_the_newest_checkpoint(tmp_path: Path, strategy: str, backend: str) -> None:
    saved = tmp_path / "elsewhere"
    assert "no checkpoint" in results.to_merge(tmp_path, saved, strategy)
    saved.mkdir()
    (saved / "latest_checkpointed_iteration.txt").write_text("12")
    words = results.to_merge(tmp_path, saved, strategy)
    assert f"--backend {backend} --local_dir {saved}/global_step_12/actor" in words
    assert words.endswith(f"--target_dir {tmp_path}/model")
    assert "python" not in results.to_merge(tmp_path, saved, "torchtitan")


@pytest.mark.parametrize(("logged", "folder"), [(True, "rollouts"), (False, None)])
def test_rollouts_are_written_to_the_run_folder(
    tmp_path: Path, logged: bool, folder: str | None
) -> None:
    found = settings(write(tmp_path), f"log_rollouts={logged}")
    expected = None if folder is None else str(Path("runs/run").resolve() / folder)
    assert found["trainer.rollout_data_dir"] == expected
