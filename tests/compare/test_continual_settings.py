"""``prefix-rft continual``: what it refuses before anything runs, each in one sentence."""

import json
from pathlib import Path

import pytest
import yaml
from continual_tasks import RECIPE, write_tasks

from prefix_rft.cli import main
from prefix_rft.compare.continual.command import check_everything, read_board
from prefix_rft.recipe.recipe import RecipeFile

SFT = "continual.arms={sft: {method: sft}}"
BAD: dict[str, tuple[list[str], str]] = {
    "no block": (["~continual"], "needs the key 'continual': a mapping with tasks and arms"),
    "no tasks": (["~continual.tasks"], "at least two names, in order, to the keys of each task"),
    "one task": (["~continual.tasks.three"], "keys of each task; there is 1"),
    "no mapping": (
        ["continual.tasks=[two, three]"],
        "'tasks' must be a mapping",
    ),
    "task": (["continual.tasks.two=3"], "task 'two' must be a mapping of recipe keys"),
    "name": (["continual.tasks={a/b: {}, c: {}}"], "'a/b' cannot name a task"),
    "model": (["continual.tasks.two.model=base"], "task 'two' cannot have a 'model' of its own"),
    "method": (["continual.tasks.two.method=sft"], "task 'two' cannot have a 'method' of its own"),
    "key of the block": (["continual.sede=1"], "unknown key of 'continual' 'sede': did you mean"),
    "key of a task": (
        ["continual.tasks.two.learnin_rate=1"],
        "task 'two': unknown recipe key 'learnin_rate': did you mean 'learning_rate'",
    ),
    "key of an arm": (
        ["continual.arms.rl.learnin_rate=1"],
        "arm 'rl/1-two': unknown recipe key 'learnin_rate': did you mean 'learning_rate'",
    ),
    "option of an arm": (["continual.arms.rl={method.entropy_kep: 1}"], "did you mean"),
    "no arms": (["~continual.arms"], "'continual' needs 'arms'"),
    "stages": (["stages=[{method: sft}]"], "makes its own stages: leave out 'stages'"),
    "start": (["continual.arms.rl.start=sft"], "arm 'rl' cannot have 'start' in a sequence"),
    "sweep": (
        ["continual.arms.rl.sweep={beta: [0]}"],
        "arm 'rl' cannot have 'sweep' in a",
    ),
    "data of an arm": (
        ["continual.arms.rl.train_data=two/train.jsonl"],
        "arm 'rl' cannot have 'train_data' of its own: all arms start from one base",
    ),
    "both": (
        ["continual.tasks.two.learning_rate=1", "continual.arms.rl.learning_rate=2"],
        "arm 'rl' and task 'two' both set 'learning_rate'",
    ),
    "no eval rows": (["continual.tasks.two.eval_data=null"], "task 'two': it needs eval_data"),
    "no reward": (["reward=null"], "reward"),
    "no steps": (["~max_steps"], "arm 'sft', task 'two': a sequence of tasks needs max_steps"),
    "rows that are not there": (
        ["continual.tasks.three.train_data=none.jsonl"],
        "task 'three': data file 'none.jsonl' does not exist",
    ),
    "held-out rows that are not there": (
        ["continual.tasks.three.eval_data=none.jsonl"],
        "task 'three': data file 'none.jsonl' does not exist",
    ),
    "column of a reward": (
        ["continual.tasks.two.reward=reasoning_gym"],
        "task 'two': reward 'reasoning_gym' needs a column 'puzzle'",
    ),
    "other values at once": (
        ["continual.tasks.two.learning_rate=1e-4"],
        "tasks differ in 'learning_rate', of which one run over the rows of all has one value",
    ),
    "rewards at once": (
        ["continual.tasks.two.reward={name: countdown, timeout: 1.0}"],
        "the rewards of tasks 'two' and 'three' differ in 'timeout' (1.0, 5.0)",
    ),
    "along the way": (["eval_every=2"], "leave out eval_every"),
    "suite": (["continual.forgetting=none.yaml"], "none.yaml' does not exist"),
    "a set of both names": (["continual.forgetting=same.yaml"], "two sets of problems are named"),
    "arms on the command line": (["--arms", "sft,grpo"], "unknown arm of 'continual' 'grpo'"),
    "jobs": (["--jobs", "0"], "--jobs must be at least 1"),
    "seeds": (["--seeds", "0"], "at least one of 'seeds'"),
    "output": (["--output", "recipe.yaml"], "--output 'recipe.yaml' is a file"),
    "nothing is done": (["--only-table"], "'comparisons/tasks-continual' has been through all"),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    suite = {"sets": [{"name": "two", "data": "two/test.jsonl", "reward": "countdown"}]}
    (folder / "same.yaml").write_text(json.dumps(suite))
    return folder


@pytest.mark.parametrize("name", BAD)
def test_refused(
    task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(task)
    options, message = BAD[name]
    before = sorted(task.rglob("*"))
    assert main(["continual", "recipe.yaml", *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert sorted(task.rglob("*")) == before


def board(task: Path, *overrides: str) -> dict[str, dict[str, object]]:
    """The keys of every run's arm."""
    found, _ = read_board(str(task / "recipe.yaml"), overrides, None, None, None)
    return {arm.name: {**arm.keys, "start": arm.start} for arm in found.comparison.arms}


def test_stages_start_from_one_another(task: Path) -> None:
    arms = board(task, "continual.tasks.two.max_steps=6")
    assert list(arms) == [
        *("sft/1-two", "sft/2-three", "sft/multi_task"),
        *("rl/1-two", "rl/2-three", "rl/multi_task"),
    ]
    assert arms["rl/1-two"]["start"] is None
    assert arms["rl/2-three"]["start"] == "rl/1-two"
    assert arms["rl/multi_task"]["start"] is None
    assert [arms[f"rl/{n}"]["max_steps"] for n in ("1-two", "2-three", "multi_task")] == [6, 4, 10]
    assert arms["rl/1-two"]["train_data"] == "two/train.jsonl"
    assert arms["rl/2-three"]["train_data"] == "three/train.jsonl"


def test_without_a_run_on_all_at_once_tasks_may_differ_in_anything(task: Path) -> None:
    given = ("continual.multi_task=false", "continual.tasks.two.learning_rate=1e-4")
    arms = board(task, *given)
    assert "rl/multi_task" not in arms
    assert arms["rl/1-two"]["learning_rate"] == 1e-4
    assert "learning_rate" not in arms["rl/2-three"]


def test_at_once_the_longest_answer_may_be_given(task: Path) -> None:
    arms = board(task, "continual.tasks.two.max_completion_length=6")
    assert arms["rl/multi_task"]["max_completion_length"] == 12  # that of the other task
    shared = board(task)
    assert "max_completion_length" not in shared["rl/multi_task"]


def test_rewards_that_are_one_stay_one(task: Path) -> None:
    assert board(task, "~continual.tasks.three.reward")["rl/multi_task"]["reward"] == "countdown"
    reward = board(task)["rl/multi_task"]["reward"]
    assert isinstance(reward, dict)
    assert reward["name"] == "by_task"
    assert reward["rewards"] == {
        "two": {"name": "countdown"},
        "three": {"name": "prefix_rft.tasks.countdown:reward"},
    }


def test_everything_can_be_used(task: Path) -> None:
    check_everything(*read_board(str(task / "recipe.yaml"), [], None, None, None))


def test_training_does_not_read_the_block(task: Path) -> None:
    data = yaml.safe_load(RECIPE) | {"train_data": "two/train.jsonl"}
    (task / "plain.yaml").write_text(yaml.safe_dump(data))
    assert "continual" not in RecipeFile.read(task / "plain.yaml").recipe().trainer
