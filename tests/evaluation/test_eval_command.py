"""``prefix-rft eval``: what its options mean, what it prints, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.cli import main
from prefix_rft.cli.eval import name_of_model
from tiny import make_model, make_rows, make_tokenizer

CODE = """
def holds(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer)]
"""
RECIPE = """
model: base
train_data: rows.jsonl
eval_data: held.jsonl
reward: tiny_rewards:holds
columns: {answer: solution}
max_completion_length: 6
eval_problems: 3
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = make_rows(5)
    rows = rows.add_column("level", ["easy", "hard", "easy", "hard", "[red]x"])  # pyright: ignore
    rows.to_json(folder / "test.jsonl")
    rows.rename_column("answer", "solution").to_json(folder / "held.jsonl")
    make_rows(16).to_json(folder / "rows.jsonl")
    (folder / "tiny_rewards.py").write_text(CODE)
    (folder / "recipe.yaml").write_text(RECIPE)
    suite = "sets:\n- {name: other, data: test.jsonl, reward: 'tiny_rewards:holds', limit: 2}\n"
    (folder / "suite.yaml").write_text(suite)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "task")
    monkeypatch.chdir(tmp_path / "task")
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path / "task"


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


SHORT = ["--max-completion-length", "6"]
DATA = ["eval", "base", "--reward", "tiny_rewards:holds", *SHORT]


def test_sets_and_temperatures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*DATA, "--data", "test.jsonl", "--data", "two=test.jsonl", "--samples", "3"]
    assert main([*arguments, "--by", "level", "--limit", "5"]) == 0
    out = capsys.readouterr().out
    assert "test: 5 problems, k = 3, in %" in out
    assert "two: 5 problems" in out
    assert "avg@k by level" in out
    assert "[red]x" in out  # text of rows is no markup
    assert "greedy" in out
    assert "pass@3" in out
    assert "evals/base" in out
    found = result(folder / "evals/base")
    assert [(r["set"], r["temperature"]) for r in found["results"]] == [
        (one, t) for one in ("test", "two") for t in (1.0, 0.6, 0.0)
    ]
    # The two sets hold the same rows: the same samples.
    assert found["results"][0]["avg"] == found["results"][3]["avg"]


def test_a_recipe_gives_the_rest(folder: Path) -> None:
    assert main(["eval", "base", "--recipe", "recipe.yaml", "--temperature", "1"]) == 0
    found = result(folder / "evals/base")
    assert [(r["set"], r["problems"]) for r in found["results"]] == [("held", 3)]
    assert found["settings"]["max_completion_length"] == 6
    assert found["settings"]["samples"] == 4


def test_other_rows_with_the_reward_of_a_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are where the command runs, the reward where the recipe is."""
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/mine.jsonl").write_text((folder / "held.jsonl").read_text())
    monkeypatch.chdir(folder / "elsewhere")
    command = ["eval", "../base", "--recipe", "../recipe.yaml", "--data", "mine.jsonl"]
    assert main([*command, "--temperature", "0", "--limit", "2", "--output", "out"]) == 0
    found = result(folder / "elsewhere/out")["results"]
    assert [(r["set"], r["problems"]) for r in found] == [("mine", 2)]


def test_forgetting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "base", "--base", "base", "--forgetting", "suite.yaml", *SHORT]
    assert main([*command, "--output", "f"]) == 0
    assert "model less base" in capsys.readouterr().out
    assert [d["set"] for d in result(folder / "f")["differences"]] == ["other"] * 3


BAD = {
    "--samples must be at least 1, got 0": [*DATA, "--data", "test.jsonl", "--samples", "0"],
    "--limit must be at least 1": [*DATA, "--data", "test.jsonl", "--limit", "0"],
    "--batch-size must be at least 1": [*DATA, "--data", "test.jsonl", "--batch-size", "0"],
    "--temperature must be at least 0": [*DATA, "--data", "test.jsonl", "--temperature", "-1"],
    "give --reward": ["eval", "base", "--data", "test.jsonl"],
    "give --data FILE": DATA,
    "--columns takes NAME=COLUMN": [*DATA, "--data", "test.jsonl", "--columns", "answer"],
    "give --base": ["eval", "base", "--forgetting", "suite.yaml"],
    "leave out the others": [*DATA, "--base", "base", "--forgetting", "suite.yaml"],
    "'none.yaml' does not exist": [*DATA, "--recipe", "none.yaml"],
    "suite 'none.yaml' does not exist": [
        "eval", "base", "--base", "base", "--forgetting", "none.yaml"
    ],
    "two sets of problems are named 'test'": [
        *DATA, "--data", "test.jsonl", "--data", "test.jsonl"
    ],
    "unknown column of set 'test' to split by 'lev': did you mean 'level'": [
        *DATA, "--data", "test.jsonl", "--by", "lev"
    ],
    "--output 'no/where'": [*DATA, "--data", "test.jsonl", "--output", "no/where"],
    "--output 'rows.jsonl'": [*DATA, "--data", "test.jsonl", "--output", "rows.jsonl"],
    "'none.jsonl'": [*DATA, "--data", "none.jsonl"],
    "'nomodel'": ["eval", "nomodel", *DATA[2:], "--data", "test.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused(folder: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert main(BAD[message]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said


def test_names_of_models() -> None:
    assert name_of_model("runs/countdown/model") == "countdown"
    assert name_of_model("runs/countdown/checkpoint-5") == "countdown-checkpoint-5"
    assert name_of_model("Qwen/Qwen3-0.6B-Base") == "Qwen3-0.6B-Base"
    assert name_of_model("base") == "base"
    assert name_of_model(".") == "model"
