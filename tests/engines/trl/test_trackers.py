"""A tracker gets every number of ``metrics.jsonl``, and leaves its files in the run folder.

TensorBoard is run for real and its file read back. Weights & Biases and Trackio need an account or
a server of their own and are not run: transformers hands the same ``logs`` to all of its callbacks,
and what is checked of them here is only that one which is not installed is refused in time.
"""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prefix_rft.cli import main
from prefix_rft.engines.arguments import check_trackers
from prefix_rft.engines.setup import configure
from prefix_rft.tasks.countdown import write
from prefix_rft.training.train import train
from tables import rest_slow

HIDDEN = "hf_thisIsNoSecretButLooksLikeOne"
SMALL = ("max_steps=2", "prompts_per_step=4", "micro_batch_size=null", "eval_data=null", "runs=out")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("countdown")
    write(folder, 120, 20, 0)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment that says nothing of trackers but secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, HIDDEN)
    return tmp_path


def single(value: float) -> float:
    """In single precision, as event files hold numbers."""
    return torch.tensor(value, dtype=torch.float32).item()


@pytest.mark.parametrize(
    ("recipe", "split"),
    [
        (
            "recipe.yaml",
            {"reward", "prefix/reward", "policy/reward", "prefix/length", "prefix/kept"},
        ),
        ("recipes/sft.yaml", {"loss", "demonstration/logp"}),
    ],
)
def test_tensorboard_has_every_number(recipe: str, split: set[str], task: Path, here: Path) -> None:
    more = ["report_to=tensorboard", "save_strategy=steps", "save_steps=1"]
    more.append(f"model_init_kwargs.token={HIDDEN}")
    folder = train(str(task / recipe), [*SMALL, *more], Console(quiet=True))
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    written = {
        (f"train/{key}", line["step"]): single(value)
        for line in lines
        for key, value in line.items()
        if key != "step" and value is not None
    }
    assert {(f"train/{key}", step) for key in split for step in (1, 2)} <= set(written)

    (events,) = here.rglob("events.out.tfevents.*")
    assert events.is_relative_to(here / folder)
    found = EventAccumulator(str(events.parent)).Reload()
    # The last line's epoch has the step and the value of the one before it.
    tracked = {
        (tag, e.step): e.value for tag in found.Tags()["scalars"] for e in found.Scalars(tag)
    }
    assert tracked == written

    assert [p.name for p in here.iterdir()] == ["out"]
    assert [p.name for p in (here / "out").iterdir()] == [folder.name]
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert [p for p in files if HIDDEN.encode() in p.read_bytes()] == []


def test_metrics_without_a_tracker(task: Path, here: Path) -> None:
    folder = train(str(task / "recipe.yaml"), SMALL, Console(quiet=True))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [1, 2, 2]
    assert not list(here.rglob("events.*"))


NOT_THERE = [
    ("wandb", "tracker 'wandb' is not installed or not configured: pip install wandb"),
    ("[tensorboard, trackio]", "pip install trackio"),
    ("comet_ml", "pip install comet-ml"),
    ("azure_ml", "pip install azureml-sdk"),
    ("kubeflow", "configured: set KUBEFLOW_TRAINER_SERVER_URL, or leave report_to out"),
    ("flyte", "pip install flytekit"),
    ("mlflow", "pip install mlflow"),
    ("tensorboard,wandb", "must be a list for several trackers: [tensorboard,wandb]"),
    ("3", "recipe key 'report_to' must be a text or a list, got 3"),
    ("tensorbord", "unknown tracker in report_to 'tensorbord': did you mean 'tensorboard'?"),
]


@pytest.mark.parametrize(
    ("tracker", "says", "command"),
    rest_slow(
        ((*case, command) for case in NOT_THERE for command in ("train", "check")),
        lambda tracker, says, command: command == "check" or tracker == "wandb",
    ),
)
def test_a_tracker_that_is_not_there(
    command: str,
    tracker: str,
    says: str,
    task: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where these trackers happen to be installed."""
    monkeypatch.setattr(
        "prefix_rft.engines.arguments.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    monkeypatch.setattr(
        "prefix_rft.engines.arguments.UNLISTED", {"azure_ml": lambda: False, "flyte": lambda: False}
    )
    assert main([command, str(task / "recipe.yaml"), *SMALL, f"report_to={tracker}"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ["azure_ml", "flyte"])
def test_a_tracker_that_transformers_does_not_list(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves Azure ML out beside MLflow, and Flyte always."""
    monkeypatch.setattr("prefix_rft.engines.arguments.get_available_reporting_integrations", list)
    monkeypatch.setattr("prefix_rft.engines.arguments.UNLISTED", {name: lambda: True})
    check_trackers([name])


@pytest.mark.parametrize("value", ["none", "null", "no", "false", "[]", "[none]"])
def test_ways_to_say_no_tracker(value: str, task: Path, here: Path) -> None:
    setup = configure(str(task / "recipe.yaml"), [*SMALL, f"report_to={value}"])
    setup.close()
    assert setup.args.report_to == []


def test_all_trackers_are_those_that_are_installed(task: Path, here: Path) -> None:
    setup = configure(str(task / "recipe.yaml"), [*SMALL, "report_to=all"])
    setup.close()
    assert "tensorboard" in setup.args.report_to
