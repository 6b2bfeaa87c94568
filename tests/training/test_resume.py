"""``prefix-rft train --resume``: which run, which checkpoint, and what is said."""

import io
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import killed_runs as killed
import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from prefix_rft.cli import main
from prefix_rft.recipe.resolved import resolved_value
from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.runs.reader import newest_run
from prefix_rft.support.errors import UserError
from prefix_rft.training.agreement import agree_to_start
from prefix_rft.training.resume import ResumePoint, changes, find, go_on_with
from prefix_rft.training.train import train
from tables import rest_slow

OVERRIDES = ["max_steps=4", "save_steps=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that is finished."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    train(str(recipe), [*OVERRIDES, f"runs={runs}"], killed.QUIET)
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
    said = resume(recipe, whole)
    assert "is finished; leave out --resume for a new one" in said
    assert "checkpoint-4 to train it longer" in said
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
    shutil.rmtree(runs / "run/damaged-4")
    assert killed.evidence(runs / "run") == killed.evidence(whole / "run")
    history = json.loads((runs / "run/environment.json").read_text())["resumed"]
    assert [(x["step"], x["changed"]) for x in history] == [(2, {})]


@pytest.mark.slow
def test_without_a_checkpoint_the_run_begins_again(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    for path in checkpoints(runs / "run").values():
        shutil.rmtree(path)
    (runs / "run/.writing").mkdir()
    (runs / "run/rollouts/step_000009.jsonl").write_text("of another time\n")
    assert "has no checkpoint to go on from: it begins again" in resume(recipe, runs)
    assert killed.evidence(runs / "run") == killed.evidence(whole / "run")


def unchanged(runs: Path) -> dict[str, int]:
    """Every file of the runs with its age."""
    files = [p for p in runs.rglob("*") if p.is_file() and p.name not in (".lock", "eval.json")]
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_where_no_checkpoint_is_whole_nothing_is_lost(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    for path in checkpoints(runs / "run").values():
        (path / "manifest.json").unlink()
    before = unchanged(runs)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        resume(recipe, runs)
    assert unchanged(runs) == before


@pytest.mark.parametrize(
    ("damage", "more", "words"),
    [
        ("truncated", (), "checkpoint-2' is damaged: optimizer.pt has"),
        ("unlisted", (), "checkpoint-2' is damaged: it has no manifest"),
        ("", ("prompts_per_step=4",), "per_device_train_batch_size|gradient_accumulation_steps"),
        ("", ("demonstration_fraction=0.5",), "was made with other rows"),
    ],
)
def test_a_checkpoint_that_is_refused_costs_no_other(
    recipe: Path, whole: Path, tmp_path: Path, damage: str, more: tuple[str, ...], words: str
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    chosen = runs / "run/checkpoint-2"
    if damage == "truncated":
        (chosen / "optimizer.pt").write_bytes((chosen / "optimizer.pt").read_bytes()[:100])
    elif damage:
        (chosen / "manifest.json").unlink()
    before = unchanged(runs)
    console = Console(quiet=True)
    with pytest.raises(UserError, match=words):
        train(str(recipe), [*OVERRIDES, f"resume_from_checkpoint={chosen}", *more], console)
    assert unchanged(runs) == before


def test_a_folder_that_is_no_run_loses_nothing(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    (runs / "run/recipe.yaml").unlink()
    before = unchanged(runs)
    chosen = f"resume_from_checkpoint={runs}/run/checkpoint-2"
    with pytest.raises(UserError, match="is no run folder: it has no recipe"):
        train(str(recipe), [*OVERRIDES, chosen], Console(quiet=True))
    assert unchanged(runs) == before


@pytest.mark.parametrize(
    ("name", "named"),
    rest_slow(
        product(["metrics.jsonl", "environment.json", "rollouts/kept_000000.jsonl"], [True, False]),
        lambda name, named: named == (name == "environment.json"),
    ),
)
def test_a_damaged_record_costs_nothing(
    recipe: Path, whole: Path, tmp_path: Path, name: str, named: bool
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    (runs / "run" / name).write_text("\0\0\n{}\n")
    before = unchanged(runs)
    chosen = [f"resume_from_checkpoint={runs}/run/checkpoint-2"] if named else [f"runs={runs}"]
    with pytest.raises(UserError, match=f"{name}' is damaged"):
        train(str(recipe), [*OVERRIDES, *chosen], Console(quiet=True), resume=not named)
    assert unchanged(runs) == before


def test_processes_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Any] = []
    monkeypatch.setattr("prefix_rft.training.agreement.gather_object", lambda own: [*own, *others])
    agree_to_start(None, ResumePoint())
    others.append((None, 3))
    with pytest.raises(UserError, match="processes have found different checkpoints"):
        agree_to_start(None, ResumePoint())
    others[0] = ("in use", 0)
    with pytest.raises(UserError, match="in use"):
        agree_to_start(None, ResumePoint())


def test_a_damaged_later_checkpoint_is_set_aside(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    (runs / "run/checkpoint-4/manifest.json").write_text("{")
    resume(recipe, runs)
    assert (runs / "run/damaged-4/manifest.json").read_text() == "{"
    assert sorted(checkpoints(runs / "run")) == [2, 4]


@pytest.mark.parametrize("what", ["more", "gone"])
def test_a_run_that_has_gone_on_meanwhile_is_left_alone(
    whole: Path, tmp_path: Path, what: str
) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    start = find(runs, ["run"], lambda words: None)
    assert start.checkpoint == runs / "run/checkpoint-4"
    start.verify_unchanged()
    if what == "more":
        (runs / "run/checkpoint-6").mkdir()
    else:
        shutil.rmtree(runs / "run/checkpoint-4")
    with pytest.raises(UserError, match="has gone on with the run"):
        start.verify_unchanged()


def test_weights_alone_are_not_gone_on_with(whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    path = runs / "run/recipe.yaml"
    known = yaml.safe_load(path.read_text())
    known["trainer"]["save_only_model"] = True
    path.write_text(yaml.safe_dump(known))
    said: list[str] = []
    assert find(runs, ["run"], said.append) == ResumePoint()
    assert "weights alone (save_only_model)" in said[0]


def test_what_differs_is_said(recipe: Path, whole: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(whole, tmp_path / "runs")
    shutil.rmtree(runs / "run/model")
    said = resume(recipe, runs, "max_steps=5", "learning_rate=1e-3", "save_steps=1")
    assert "changed since the run began: trainer.learning_rate: 0.01 -> 0.001" in said
    assert "changed since the run began: trainer.max_steps: 4 -> 5" in said
    assert said.count("changed since") == 2
    history = json.loads((runs / "run/environment.json").read_text())["resumed"]
    assert history[0]["changed"]["trainer.max_steps"] == ["4", "5"]
    assert sorted(checkpoints(runs / "run")) == [4, 5]  # save_steps=1 holds from now on
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
            named = "a-10" if name == "a-10" else "a"
            (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump({"name": named}))
    assert newest_run(tmp_path, "a") == tmp_path / "a-2"
    assert newest_run(tmp_path, "a-10") == tmp_path / "a-10"
    assert newest_run(tmp_path, "c") is None


def test_stages_of_an_older_pass_are_not_gone_on_with(tmp_path: Path) -> None:
    said: list[str] = []

    def made(name: str, model: str | None, done: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        called = name.removesuffix("-2") if name.count("-") == 3 else name
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model, "name": called}))
        if done:
            (folder / "model").mkdir()
        return folder

    first = made("x-1-sft", "base")
    second = made("x-2-rl", str(first / "model"))
    names = ["x-1-sft", "x-2-rl"]
    assert find(tmp_path, names, said.append) == ResumePoint(1, folder=second, finished=True)
    again = made("x-1-sft-2", "base", done=False)
    assert find(tmp_path, names, said.append) == ResumePoint(0, None, again, seen=())
    assert "begins again" in said[-1]
    (again / "model").mkdir()
    assert find(tmp_path, names, said.append) == ResumePoint(1, str(again / "model"))
    later = made("x-2-rl-2", str(again / "model"), done=False)
    assert find(tmp_path, names, said.append) == ResumePoint(
        1, str(again / "model"), later, seen=()
    )


def test_changes_are_those_of_what_is_trained() -> None:
    before: dict[str, Any] = {"name": "a", "trainer": {"seed": 1, "save_steps": 2}, "columns": {}}
    now = {"name": "b", "trainer": {"seed": 2, "save_steps": 3, "beta": 0.1}, "columns": {}}
    assert changes(before, now) == {"trainer.seed": ["1", "2"], "trainer.beta": [None, "0.1"]}


def test_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["runs=my runs", "resume_from_checkpoint=x/checkpoint-1", "method.beta=0.1"]
    said = go_on_with("a b.yaml", given, ResumePoint(), tmp_path)
    assert said == "prefix-rft train 'a b.yaml' 'runs=my runs' method.beta=0.1 --resume"
    # One that was named: --resume could find another run, and both at once are refused.
    for step in (1, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    named = ResumePoint(folder=tmp_path, checkpoint=tmp_path / "checkpoint-1")
    said = go_on_with("a.yaml", given, named, tmp_path)
    assert said.endswith(f"method.beta=0.1 resume_from_checkpoint={tmp_path}/checkpoint-12")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert go_on_with("a.yaml", [], ResumePoint(), tmp_path) == (
        "(as 4 processes again) prefix-rft train a.yaml --resume"
    )


def test_secrets_stay_out_of_the_run_folder() -> None:
    given = {
        "model_init_kwargs": {"token": "hf_1", "dtype": "float32"},
        "trainer": {
            "hub_token": "hf_2",
            "wandb_api_key": "x",
            "aws_secret_access_key": "y",
            "api-key": "y",
            "private_key": "y",
            "db_passwd": "y",
            "headers": {"Authorization": "Bearer y"},
            "eos_token": "<eos>",
            "max_tokens": 3,
            "vllm_server_base_url": "http://me:secret@host:8000/v1",
        },
        "list": [{"password": "z"}, "https://host/a@b", "Bearer abc", "https://h/x?api_key=1&a=2"],
    }
    assert resolved_value(given) == {
        "model_init_kwargs": {"dtype": "float32"},
        "trainer": {
            "eos_token": "<eos>",
            "max_tokens": 3,
            "headers": {},
            "vllm_server_base_url": "http://host:8000/v1",
        },
        "list": [{}, "https://host/a@b", "Bearer ", "https://h/x?&a=2"],
    }
