"""A run's own right rollouts as demonstrations: which they are, and of which rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefix_rft.cli import main
from prefix_rft.data import load_rows
from prefix_rft.evaluation.own_rollouts import is_right
from prefix_rft.runs.rollouts import Rollout
from tiny import make_model, make_rows, make_tokenizer

GRADE = """
from zlib import crc32

def reward(completions, **kwargs):
    return [float(crc32(c.encode()) % 3 == 0) for c in completions]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    make_rows(8).to_json(folder / "train.jsonl")
    (folder / "own_rollouts_grade.py").write_text(GRADE)
    recipe = {
        "name": "rft",
        "model": "model",
        "train_data": "train.jsonl",
        "reward": "own_rollouts_grade:reward",
        "method": "prefix_rft",
        "num_generations": 4,
        "prompts_per_step": 4,
        "micro_batch_size": 16,
        "max_completion_length": 24,
        "max_steps": 4,
        "runs": str(folder / "runs"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(run: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    files = ["--recipe", str(run / "recipe.yaml"), "--solved", str(output)]
    assert main(["rollouts", str(run / "runs/rft"), *files, *more]) == 0
    return lines(output)


def test_they_are_the_policys_own_and_right(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = written(run, tmp_path / "own.jsonl")
    rollouts = [
        line for p in sorted((run / "runs/rft/rollouts").glob("step_*")) for line in lines(p)
    ]
    prompts = {row["prompt"]: row for row in lines(run / "train.jsonl")}
    right: dict[str, list[str]] = {}
    for line in rollouts:
        ends = line["text"].endswith("<eos>")
        if line["reward"] == 1.0 and not line["prefix_length"] and ends:
            right.setdefault(line["prompt"], []).append(line["text"].removesuffix("<eos>"))
    assert right
    assert {row["prompt"] for row in found} == right.keys()
    for row in found:
        assert row["answer"] == prompts[row["prompt"]]["answer"]
        wanted = list(dict.fromkeys(reversed(right[row["prompt"]])))[:4]
        assert set(row["demonstration"]) == set(wanted) or len(wanted) == 4
        assert set(row["demonstration"]) <= set(right[row["prompt"]])
    own = [line for line in rollouts if not line["prefix_length"]]
    assert f"of {len(own)} on-policy rollouts are right" in capsys.readouterr().out
    assert len(load_rows(str(tmp_path / "own.jsonl"))) == len(found)


def test_what_is_kept(run: Path, tmp_path: Path) -> None:
    one = written(run, tmp_path / "one.jsonl", "--keep", "1")
    assert {len(row["demonstration"]) for row in one} == {1}
    late = written(run, tmp_path / "late.jsonl", "--from-step", "3")
    assert len(late) <= 4


def test_what_cannot_be_used(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--recipe", str(run / "recipe.yaml"), "--solved", str(tmp_path / "x.jsonl")]
    assert main(["rollouts", str(run / "runs/rft"), *files, "--from-step", "9"]) == 2
    assert "none of 0 on-policy rollouts" in capsys.readouterr().err
    other = tmp_path / "other.yaml"
    text = (run / "recipe.yaml").read_text().replace("train.jsonl", str(tmp_path / "b.jsonl"))
    make_rows(8, seed=5).to_json(tmp_path / "b.jsonl")
    other.write_text(text.replace("model: model", f"model: {run / 'model'}"))
    (tmp_path / "own_rollouts_grade.py").write_text(GRADE)
    files[1] = str(other)
    assert main(["rollouts", str(run / "runs/rft"), *files]) == 2
    assert "0 rows of the recipe have the prompt of a rollout" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


WRITTEN: dict[str, Any] = {
    "group": 0,
    "row": 0,
    "completion_ids": [5, 1],
    "prefix_length": 0,
    "prompt": "q",
    "text": "a<eos>",
    "reward": 1.0,
    "verdicts": {"a": {"status": "correct"}, "b": {"status": "correct"}},
}


@pytest.mark.parametrize(
    ("other", "right"),
    [
        ({}, True),
        ({"prefix_length": 1}, False),
        ({"hint_length": 2}, False),
        ({"demonstration": True}, False),
        ({"truncated": True}, False),
        ({"verdicts": {}}, False),
        ({"verdicts": {"a": {"status": "correct"}, "b": {"status": "wrong"}}}, False),
    ],
)
def test_what_is_right(other: dict[str, Any], right: bool) -> None:
    assert is_right(Rollout.read({**WRITTEN, **other})) is right
