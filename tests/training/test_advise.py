"""``prefix-rft advise``: what it measures, behind SFT too, and what it says of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.cli import main
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.evaluation.expected import success
from prefix_rft.evaluation.regimes import Rule, advice, measured_rule
from prefix_rft.tasks.countdown import write

ROWS, SAMPLES = 12, 8
SMALL = ("num_generations=4", "prompts_per_step=3", "micro_batch_size=12", "temperature=0.9")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, ROWS, 4, 0, n_valid=2)
    return folder


def ask(recipe: Path, output: Path, *more: str) -> int:
    options = ["--rows", "8", "--samples", str(SAMPLES), "--output", str(output)]
    return main(["advise", str(recipe), *more, *options])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "advice.json").read_text())


def stored(path: Path) -> list[int]:
    """Correct samples of each problem, by what was stored."""
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    return [sum(s["verdict"]["status"] == "correct" for s in p["samples"]) for p in problems]


def test_what_is_measured(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(task / "recipe.yaml", tmp_path / "out", *SMALL) == 0
    said, found = " ".join(capsys.readouterr().out.split()), read(tmp_path / "out")
    correct = stored(tmp_path / "out/start/samples/model/train-T0.9.jsonl")
    assert len(correct) == 8
    assert found["start"]["success"]["mean"] == pytest.approx(sum(correct) / 64)
    expected = success(correct, [SAMPLES] * 8)
    # A step has 3 x 4 rows.
    assert found["start"]["lambda"]["mean"] == pytest.approx(12 * expected.mean)
    assert found["start"]["lambda"]["high"] == pytest.approx(12 * expected.high)
    assert found["start"]["with_demonstration"] == 8
    assert found["start"]["likelihood"]["demonstrations"] == 8
    assert f"lambda, solved rows of a step of 12: {12 * expected.mean:.2g}" in said
    rule = measured_rule()
    assert rule.score in said
    assert "ask again with --sft-steps N" in said
    # The same command measures nothing anew.
    before = sorted((tmp_path / "out").rglob("*.jsonl"))
    stamps = [p.stat().st_mtime_ns for p in before]
    assert ask(task / "recipe.yaml", tmp_path / "out", *SMALL) == 0
    assert [p.stat().st_mtime_ns for p in before] == stamps


@pytest.mark.slow
def test_behind_sft_on_a_copy(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (task / "base/model.safetensors").read_bytes()
    steps = ("--sft-steps", "3")
    assert ask(task / "recipe.yaml", tmp_path / "out", *SMALL, "learning_rate=2e-4", *steps) == 0
    found, said = read(tmp_path / "out"), capsys.readouterr().out
    trained = tmp_path / "out/sft-3"
    assert (task / "base/model.safetensors").read_bytes() == base
    assert (trained / "model/model.safetensors").read_bytes() != base
    settings = json.loads((tmp_path / "out/behind-sft-3/settings.json").read_text())
    assert settings["models"]["model"]["source"] == str(trained / "model")
    more, less = (found[k]["likelihood"]["per_token"] for k in ("sft", "start"))
    assert more > less  # it has seen them
    assert "behind 3 steps of SFT" in said
    assert "ask again" not in said


@pytest.mark.slow
def test_a_stage_that_imitates_is_the_sft(task: Path, tmp_path: Path) -> None:
    recipe = task / "staged.yaml"
    recipe.write_text(
        """
name: staged
model: base
train_data: train.jsonl
eval_data: test.jsonl
reward: prefix_rft.tasks.countdown:reward
max_completion_length: 12
stages:
  - {method: dft, prompts_per_step: 2, learning_rate: 1e-3, max_steps: 50}
  - {method: adaback, num_generations: 4, prompts_per_step: 2, micro_batch_size: 8, max_steps: 9}
"""
    )
    assert ask(recipe, tmp_path / "out", "--sft-steps", "2") == 0
    found = read(tmp_path / "out")
    assert found["start"]["step_rows"] == 8  # of the stage that samples
    resolved = (tmp_path / "out/sft-2/recipe.yaml").read_text()
    assert "method: dft" in resolved
    assert "max_steps: 2" in resolved


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["method=sft", "~num_generations", "~micro_batch_size"], "imitates and never samples"),
        (["~reward"], "reward"),
        (["--sft-steps", "0"], "--sft-steps must be at least 1, got 0"),
    ],
)
def test_what_it_refuses(
    task: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(task / "recipe.yaml", tmp_path / "out", *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())


RULE = Rule(19, 20, 4, 0.01, 30.0, "runs on x", (0.1, 0.9), (0.95, 0.93))


@pytest.mark.parametrize(
    ("low", "mean", "high", "demonstrations", "words"),
    [
        (0.0, 0.1, 0.4, 50, "below 0.5, where RL from the prompt starts late or not at all"),
        (0.0, 0.1, 0.4, 50, "(10 % with dr_grpo at the best rate tried, 90 % with prefixes there)"),
        (2.5, 6.0, 9.0, 50, "above 2, where RL started by itself"),
        (2.5, 6.0, 9.0, 50, "which prefixes as context did not beat"),
        (0.4, 0.9, 1.9, 50, "RL may start or not"),
        (0.2, 1.0, 9.0, 50, "RL may start or not"),
        (0.0, 0.1, 0.4, 0, "no row has a demonstration"),
    ],
)
def test_the_first_sentence(
    low: float, mean: float, high: float, demonstrations: int, words: str
) -> None:
    first, second = advice(Estimate(mean, low, high, 9), demonstrations, RULE)
    assert words in first
    assert "19 of 20 runs" in second


def test_where_the_table_ends() -> None:
    inside, outside = (advice(Estimate(m, m, m, 9), 50, RULE)[1] for m in (0.1, 40.0))
    assert "outside of" not in inside
    assert "nor lambda outside of 0.01 to 30" in outside


def test_prefixes_ahead_above_two_are_said() -> None:
    ahead = Rule(1, 1, 0, 0.0, 9.0, "x", None, (0.8, 0.9))
    first, _ = advice(Estimate(5.0, 4.0, 6.0, 9), 50, ahead)
    assert "did not beat" not in first
    assert "(80 % with dr_grpo at the best rate tried, 90 % with prefixes there)" in first


def check(recipe: Path, *more: str) -> int:
    return main(["check", str(recipe), *SMALL, *more])


def test_check_prints_the_short_form(
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    task = shutil.copytree(task, tmp_path / "task")
    check(task / "recipe.yaml")
    assert "lambda" not in capsys.readouterr().out
    Path("advice").mkdir()
    assert ask(task / "recipe.yaml", Path("advice/countdown"), *SMALL) == 0
    correct = sum(stored(tmp_path / "advice/countdown/start/samples/model/train-T0.9.jsonl"))
    capsys.readouterr()
    check(task / "recipe.yaml")
    said = " ".join(capsys.readouterr().out.split())
    words = f"lambda: of 12 rows a step the start model solves {12 * correct / 64:.2g}"
    assert f"{words} without a prefix (advice/countdown/start, train, 64 samples)" in said
    assert ("RL from the prompt alone will hardly start" in said) == (12 * correct / 64 < 1)
    # What was seen at another temperature, with another grader, or of another model does not count.
    for other in ("temperature=1.0", "reward=exact"):
        check(task / "recipe.yaml", other)
        assert "lambda" not in capsys.readouterr().out
    config = task / "base/config.json"
    config.write_text(config.read_text() + "\n")
    check(task / "recipe.yaml")
    assert "lambda" not in capsys.readouterr().out
