"""``prefix-rft train --resume``: which run, which checkpoint, and what is said."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import killed_runs as killed
import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from prefix_rft.checkpoints import checkpoints
from prefix_rft.cli import main
from prefix_rft.errors import UserError
from prefix_rft.resuming import Start, changes, find, go_on_with, newest_run
from prefix_rft.train import resolved_value, train

OVERRIDES = ["max_steps=4", "save_steps=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that is finished."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert killed.run(recipe, runs, OVERRIDES) == 0
    return runs


def resume(recipe: Path, runs: Path, *more: str) -> str:
    """Go on, in this process; what was printed."""
    console = Console(record=True, width=200, file=io.StringIO())
    train(str(recipe), [*OVERRIDES, f"runs={runs}", *more], console, resume=True)
    return console.export_text()


def test_where_there_is_nothing_a_run_begins(recipe: Path, whole: Path, tmp_path: Path) -> None:
    said = resume(recipe, tmp_path / "runs")
    assert "no run of the name 'run' in" in said
    assert killed.evidence(tmp_path / "runs/run") == killed.evidence(whole / "run")


def test_a_finished_run_is_left_alone(recipe: Path, whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert "is finished; without --resume a new one begins" in resume(recipe, whole)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    path = runs / "run/checkpoint-4/optimizer.pt"
    path.write_bytes(path.read_bytes()[:100])
    said = resume(recipe, runs)
    assert "passed over the damaged checkpoint" in said
    assert "going on with" in said
    assert "from step 2" in said
    assert "changed since" not in said
    assert killed.evidence(runs / "run") == killed.evidence(whole / "run")
    history = json.loads((runs / "run/environment.json").read_text())["resumed"]
    assert [(x["step"], x["changed"]) for x in history] == [(2, {})]


def test_without_a_whole_checkpoint_the_run_begins_again(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    for path in checkpoints(runs / "run").values():
        (path / "manifest.json").unlink()
    (runs / "run/.writing").mkdir()
    (runs / "run/rollouts/step_000009.jsonl").write_text("of another time\n")
    assert "has no checkpoint to go on from: it begins again" in resume(recipe, runs)
    assert killed.evidence(runs / "run") == killed.evidence(whole / "run")


def test_what_differs_is_said(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    said = resume(recipe, runs, "max_steps=5", "learning_rate=1e-3", "save_steps=1")
    assert "changed since the run began: trainer.learning_rate: 0.01 -> 0.001" in said
    assert "changed since the run began: trainer.max_steps: 4 -> 5" in said
    assert said.count("changed since") == 2
    history = json.loads((runs / "run/environment.json").read_text())["resumed"]
    assert history[0]["changed"]["trainer.max_steps"] == ["4", "5"]
    assert yaml.safe_load((runs / "run/recipe.yaml").read_text())["trainer"]["max_steps"] == 5
    lines = (runs / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [2, 4, 5, 5]


def test_a_folder_in_use_is_refused(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    with (
        FileLock(runs / "run/.lock"),
        pytest.raises(UserError, match="is in use by another process"),
    ):
        resume(recipe, runs)


def test_both_ways_at_once_are_refused(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"resume_from_checkpoint={whole}/run/checkpoint-2"
    assert main(["train", str(recipe), checkpoint, "--resume"]) == 2
    assert "give --resume or resume_from_checkpoint, not both" in capsys.readouterr().err


def test_the_newest_run_has_the_highest_number(tmp_path: Path) -> None:
    for name in ("a", "a-2", "a-10", "a-b", "ab", "a-11"):
        (tmp_path / name).mkdir()
        if name != "a-11":
            (tmp_path / name / "recipe.yaml").write_text("{}")
    assert newest_run(tmp_path, "a") == tmp_path / "a-10"
    assert newest_run(tmp_path, "c") is None


def test_stages_of_an_older_pass_are_not_gone_on_with(tmp_path: Path) -> None:
    said: list[str] = []

    def made(name: str, model: str | None, done: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model}))
        if done:
            (folder / "model").mkdir()
        return folder

    first = made("x-1-sft", "base")
    second = made("x-2-rl", str(first / "model"))
    names = ["x-1-sft", "x-2-rl"]
    assert find(tmp_path, names, said.append) == Start(1, folder=second, finished=True)
    again = made("x-1-sft-2", "base", done=False)
    assert find(tmp_path, names, said.append) == Start(0, None, again)
    assert "begins again" in said[-1]
    (again / "model").mkdir()
    assert find(tmp_path, names, said.append) == Start(1, str(again / "model"))
    later = made("x-2-rl-2", str(again / "model"), done=False)
    assert find(tmp_path, names, said.append) == Start(1, str(again / "model"), later)


def test_changes_are_those_of_what_is_trained() -> None:
    before: dict[str, Any] = {"name": "a", "trainer": {"seed": 1, "save_steps": 2}, "columns": {}}
    now = {"name": "b", "trainer": {"seed": 2, "save_steps": 3, "beta": 0.1}, "columns": {}}
    assert changes(before, now) == {"trainer.seed": ["1", "2"], "trainer.beta": [None, "0.1"]}


def test_the_command_that_goes_on_is_quoted() -> None:
    given = ["runs=my runs", "resume_from_checkpoint=x/checkpoint-1", "method.beta=0.1"]
    said = go_on_with("a b.yaml", given)
    assert said == "prefix-rft train 'a b.yaml' 'runs=my runs' method.beta=0.1 --resume"


def test_secrets_stay_out_of_the_run_folder() -> None:
    given = {
        "model_init_kwargs": {"token": "hf_1", "dtype": "float32"},
        "trainer": {
            "hub_token": "hf_2",
            "wandb_api_key": "x",
            "aws_secret_access_key": "y",
            "eos_token": "<eos>",
            "max_tokens": 3,
            "vllm_server_base_url": "http://me:secret@host:8000/v1",
        },
        "list": [{"password": "z"}, "https://host/a@b"],
    }
    assert resolved_value(given) == {
        "model_init_kwargs": {"dtype": "float32"},
        "trainer": {
            "eos_token": "<eos>",
            "max_tokens": 3,
            "vllm_server_base_url": "http://host:8000/v1",
        },
        "list": [{}, "https://host/a@b"],
    }
