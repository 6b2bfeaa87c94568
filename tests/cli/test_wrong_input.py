"""Input that cannot be used: one clear sentence, exit code 2, no traceback, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prefix_rft.cli import main
from tiny import RECOMPUTE, make_model, make_rows, make_tokenizer

REWARDS = """
def good(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer)]
def short(completions, **kwargs):
    return [1.0]
def nan(completions, **kwargs):
    return [float("nan")] * len(completions)
def words(completions, **kwargs):
    return ["yes"] * len(completions)
def number(completions, **kwargs):
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, rewards and a recipe that works."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_rows(16).to_json(tmp_path / "train.jsonl")
    make_rows(4, seed=1).to_json(tmp_path / "test.jsonl")
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_rewards", raising=False)
    monkeypatch.setattr(__import__("sys"), "path", list(__import__("sys").path))
    return tmp_path


def write_recipe(folder: Path, **changes: Any) -> None:
    recipe = {
        "model": "base",
        "train_data": "train.jsonl",
        "eval_data": "test.jsonl",
        "reward": "my_rewards:good",
        "name": "tiny",
        "prompts_per_step": 2,
        "max_completion_length": 24,
        "max_steps": 2,
        "learning_rate": "1e-3",
    }
    recipe = {k: v for k, v in (recipe | changes).items() if v is not None}
    text = yaml.safe_dump(recipe).replace("'1e-3'", "1e-3")
    (folder / "recipe.yaml").write_text(text)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


ROW = {"prompt": "q:1+1=?\n", "demonstration": "1+1=2;#2", "answer": "2"}


def edit(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_recipe(folder, **changes)


CASES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "unknown method": (edit(method="prefix_rtf"), [], "unknown method 'prefix_rtf': did you mean"),
    "unknown option": (
        edit(method={"name": "prefix_rft", "entropy_kep": 0.5}),
        [],
        "unknown option of method prefix_rft 'entropy_kep': did you mean 'entropy_keep'?",
    ),
    "bad option value": (
        edit(),
        ["method.entropy_mode=highest"],
        "unknown entropy mode 'highest': did you mean 'high'?",
    ),
    "unknown key": (edit(learning_rat=1), [], "unknown recipe key 'learning_rat': did you mean"),
    "option of another method": (
        edit(method="dr_grpo"),
        ["method.entropy_keep=0.5"],
        "unknown option of method dr_grpo 'entropy_keep'",
    ),
    "setting that the method owns": (edit(loss_type="grpo"), [], "loss_type='grpo' has no effect"),
    "no such recipe": (lambda f: (f / "recipe.yaml").unlink(), [], "does not exist"),
    "not YAML": (lambda f: (f / "recipe.yaml").write_text("a: [1"), [], "is not valid YAML"),
    "not a mapping": (lambda f: (f / "recipe.yaml").write_text("- 1"), [], "must be a mapping"),
    "not key=value": (edit(), ["max_steps"], "'max_steps' is not of the form key=value"),
    "no such data": (edit(train_data="nothing.jsonl"), [], "nothing.jsonl' does not exist"),
    "data of unknown kind": (
        lambda f: (write_recipe(f, train_data="x.csv"), (f / "x.csv").write_text("a")),
        [],
        "must end in one of .jsonl, .json, .parquet",
    ),
    "data that is not JSON": (
        lambda f: (f / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt"'),
        [],
        "train.jsonl', row 2: not valid JSON",
    ),
    "no prompt column": (
        lambda f: write_rows(f, [{"query": "a"}]),
        [],
        "row 1: no column 'prompt', 'messages', 'problem' or 'question'; it has query",
    ),
    "a row without prompt": (
        lambda f: write_rows(f, [ROW, {**ROW, "prompt": None}]),
        [],
        "row 2, column 'prompt': the prompt is missing or empty",
    ),
    "a demonstration of wrong type": (
        lambda f: (
            write_rows(f, [ROW, {**ROW, "demonstration": None}, ROW])
            or write_rows(f, [{**ROW, "demonstration": 3}])
        ),
        [],
        "row 1, column 'demonstration': a demonstration is a text or a list of texts, got a number",
    ),
    "no demonstration at all": (
        lambda f: write_rows(f, [{k: v for k, v in ROW.items() if k != "demonstration"}] * 4),
        [],
        "needs demonstrations, but no row has one in column 'demonstration'",
    ),
    "all demonstrations too long": (
        lambda f: write_rows(f, [{**ROW, "demonstration": "1+1=2;" * 20}] * 4),
        [],
        "(4 dropped: longer than 24 tokens)",
    ),
    "no such column": (
        lambda f: (
            write_rows(f, [{k: v for k, v in ROW.items() if k != "demonstration"}])
            or write_recipe(f, columns={"demonstration": "solution"})
        ),
        [],
        "row 1, column 'solution': missing; there are prompt, answer",
    ),
    "rows that do not divide": (
        edit(micro_batch_size=5),
        [],
        "2 prompts x 8 rows on 1 process(es) = 16 rows do not divide into micro-batches of 5",
    ),
    "batch keys of TRL": (
        edit(gradient_accumulation_steps=2),
        [],
        "'gradient_accumulation_steps' cannot be set: give prompts_per_step and micro_batch_size",
    ),
    "more hybrid rows than rows": (
        edit(),
        ["method.num_hybrid=9"],
        "wants 9 hybrid and 0 demonstration rows in groups of num_generations=8",
    ),
    "a group of one": (edit(num_generations=1), [], "num_generations must be at least 2: the rows"),
    "a group of none": (edit(), ["num_generations=0"], "num_generations must be at least 2"),
    "a group of null": (edit(), ["num_generations=null"], "must be a whole number, got None"),
    "all tokens in vLLM's words": (edit(), ["top_k=-1"], "at least 0 (0 takes all tokens), got -1"),
    "no steps": (edit(), ["max_steps=0"], "max_steps must be at least 1, or -1 for num_train_ep"),
    "columns taken away": (edit(), ["remove_unused_columns=true"], "cannot be used: it takes away"),
    "stop strings": (
        edit(),
        ["generation_kwargs={stop_strings: [a]}"],
        "generation_kwargs cannot have 'stop_strings'",
    ),
    "a loss's setting": (edit(), ["label_smoothing_factor=0.1"], "=0.1 has no effect here"),
    "a text for a mapping": (edit(), ["fsdp_config=1"], "must be a mapping or a text, got 1"),
    "no such DeepSpeed file": (edit(), ["deepspeed=nowhere.json"], "trainer settings are refused"),
    "no such accelerator file": (edit(), ["accelerator_config=no.json"], "No such file"),
    "a prompts_per_step of zero": (edit(prompts_per_step=0), [], "must be at least 1, got 0"),
    "no reward": (edit(reward=None), [], "needs a reward"),
    "reward of wrong form": (edit(reward="my_rewards.good"), [], "package.module:function"),
    "reward that is not there": (edit(reward="my_rewards:god"), [], "cannot be imported"),
    "reward of wrong length": (
        edit(reward={"name": "my_rewards:short", "whole_batch": True}, eval_data=None),
        [],
        "'short' returned 1 rewards for 8 completions",
    ),
    "reward NaN": (
        edit(reward="my_rewards:nan", eval_data=None),
        [],
        "'nan' could grade none of the first 8 demonstrations (error: the reward is nan",
    ),
    "reward of words": (
        edit(reward="my_rewards:words", eval_data=None),
        [],
        "'words' could grade none of the first 8 demonstrations (error: 'yes' is not a number)",
    ),
    "reward that is one number": (
        edit(reward="my_rewards:number", eval_data=None),
        [],
        "demonstrations (error: returned a float; it must return a list",
    ),
    "no such model": (edit(model="nowhere/nothing"), [], "model 'nowhere/nothing' cannot be"),
    "a learning rate of words": (edit(learning_rate="fast"), [], "learning_rate"),
    "a whole number that is none": (
        edit(),
        ["method.num_hybrid=1.5"],
        "option of method prefix_rft 'num_hybrid' must be a whole number, got 1.5",
    ),
    "a share above one": (edit(), ["method.entropy_keep=2"], "must be in [0, 1], got 2"),
    "a share of words": (edit(), ["method.entropy_keep=lots"], "must be a number, got 'lots'"),
    "a method that is no name": (edit(), ["method=5"], "'method' must be a text or a mapping"),
    "a method of nobody": (edit(method="nope.mod:fn"), [], "'nope.mod:fn' cannot be imported"),
    "an empty data file": (lambda f: (f / "train.jsonl").write_text(""), [], "is empty"),
    "a broken parquet file": (
        lambda f: (write_recipe(f, train_data="x.parquet"), (f / "x.parquet").write_text("PAR1")),
        [],
        "x.parquet' cannot be read",
    ),
    "prompts that are numbers": (
        lambda f: write_rows(f, [{**ROW, "prompt": 3}]),
        [],
        "row 1, column 'prompt': a prompt is a text or a list of messages, not a number",
    ),
    "a blank prompt": (
        lambda f: write_rows(f, [{**ROW, "prompt": " \n"}]),
        [],
        "row 1, column 'prompt': the prompt is missing or empty",
    ),
    "a column named like another": (
        edit(columns={"prompt": "answer"}),
        [],
        "row 1, column 'prompt': the name is taken, so 'answer' cannot have it",
    ),
    "too few rows": (
        lambda f: write_rows(f, [ROW]),
        [],
        "1 rows, but one generation takes 2 prompts",
    ),
    "a run outside its folder": (edit(), ["name=../x"], "'name' is the name of a folder"),
    "greedy exploration": (edit(), ["temperature=0"], "temperature must be above 0, or nothing"),
    "a negative learning rate": (edit(learning_rate=-1), [], "must be at least 0"),
    "num_generations of words": (edit(), ["num_generations=x"], "must be a whole number, got"),
    "an unknown tracker": (edit(report_to="nobody"), [], "nobody"),
    "weights of the wrong number": (edit(reward_weights=[1, 2]), [], "reward weights"),
    "resuming": (edit(), ["resume_from_checkpoint=x"], "is no checkpoint: name a folder"),
    "a broken model file": (
        lambda f: (f / "base/model.safetensors").write_bytes(b"rubbish"),
        [],
        "model '",
    ),
    "a schedule that is none": (
        edit(),
        ["method.prefix_low={kind: cosin, start: 1, end: 0}"],
        "unknown schedule kind 'cosin': did you mean 'cosine'?",
    ),
}
if RECOMPUTE == "activation_checkpointing":  # before transformers 5.23 there is one name alone
    both = ["gradient_checkpointing=true", "activation_checkpointing=false"]
    CASES["two names of one setting"] = (edit(), both, "are two names of one: leave one")


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_gets_one_sentence(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, overrides, sentence = CASES[case]
    spoil(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["train", "recipe.yaml", *overrides]) == 2
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line]
    assert sentence in error
    assert len(lines) == 1, error
    assert lines[0].startswith("prefix-rft: error: ")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_too_long_demonstrations_are_dropped_and_counted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows(
        folder, [ROW, {**ROW, "demonstration": "1" * 24}, {**ROW, "demonstration": "1" * 23}]
    )
    assert main(["train", "recipe.yaml", "prompts_per_step=1"]) == 0
    assert "2 demonstrations in 2 of 3 rows; 1 dropped: longer than 24 tokens" in " ".join(
        capfd.readouterr().out.split()
    )


def test_a_run_leaves_its_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe.yaml", "method.entropy_keep=0.5"]) == 0
    out = capfd.readouterr().out
    assert "step 2/2" in out
    assert "95 % interval" in out
    run = folder / "runs/tiny"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["method"]["name"] == "prefix_rft"
    assert recipe["method"]["entropy_keep"] == 0.5
    assert recipe["trainer"]["learning_rate"] == 1e-3
    metrics = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics[:2]] == [1, 2]
    assert {"policy/reward", "prefix/reward", "entropy", "prefix/length"} <= metrics[0].keys()
    rollouts = (run / "rollouts/step_000001.jsonl").read_text().splitlines()
    assert len(rollouts) == 16
    line = json.loads(rollouts[0])
    tokenizer = make_tokenizer()
    assert tokenizer.decode(line["completion_ids"]) == line["text"]
    assert {"prefix_length", "reward", "advantage", "truncated", "prompt_ids"} <= line.keys()
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["base"]["problems"] == evaluation["trained"]["problems"] == 4
    assert sorted(p.name for p in (run / "model").glob("*.safetensors")) == ["model.safetensors"]
    assert "Prefix-RFT report" in (run / "report.html").read_text()
    # A second run does not touch the first.
    assert main(["train", "recipe.yaml", "method=sft"]) == 0
    assert (folder / "runs/tiny-2/model/model.safetensors").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(metrics)


def test_secrets_and_pickles_stay_out_of_the_run_folder(folder: Path) -> None:
    overrides = ["model_init_kwargs={token: hf_SECRET}", "max_steps=1"]
    assert main(["train", "recipe.yaml", *overrides]) == 0
    for path in (folder / "runs/tiny").rglob("*"):
        assert path.suffix not in (".bin", ".pkl"), path
        if path.suffix == ".pt":  # the optimizer's state is torch's own file, of tensors alone
            torch.load(path, weights_only=True)
        assert path.is_dir() or b"hf_SECRET" not in path.read_bytes(), path


def test_weights_are_trained_in_single_precision(folder: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).bfloat16().save_pretrained(folder / "base")
    from prefix_rft.engines.models import load_model

    assert load_model("base")[0].dtype is torch.float32
    assert load_model("base", dtype="auto")[0].dtype is torch.bfloat16


def test_methods_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("prefix_rft", "grpo", "dr_grpo", "sft"))
    assert main(["methods", "prefix_rft"]) == 0
    assert "entropy_keep" in capsys.readouterr().out
    assert main(["methods", "prefix"]) == 2


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out
