"""``stop_after``: when a run ends early, that it is then done, and the stage behind it."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import killed_runs as killed
import pytest
import yaml
from scripted import run, script, weights, write_task

from prefix_rft.engines.setup import configure
from prefix_rft.runs.best import since_best
from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.errors import UserError
from tables import rest_slow

VALUES = {1: 0.2, 2: 0.5, 3: math.nan, 4: 0.5, 5: 0.6}
"""By step. Two evaluations in a row are not the best, the second at step 4."""
STOP = ["eval_every=1", "stop_after=2", "save_steps=3", "keep=best"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[dict[int, float]]:
    values = dict(VALUES)
    with pytest.MonkeyPatch.context() as patch:
        script(patch, values)
        yield values


@pytest.fixture(scope="module")
def stopped(
    recipe: Path, told: dict[int, float], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that ended early, not to be changed, and what it said."""
    return run(recipe, tmp_path_factory.mktemp("stopped"), *STOP)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([], 0),
        ([0.2], 0),
        ([0.2, 0.5], 0),
        ([0.5, 0.2, 0.4], 2),
        ([0.5, 0.5, 0.5], 2),  # what is as good is not better
        ([0.5, math.nan], 1),
        ([math.nan, math.nan], 2),
        ([math.nan, 0.1], 0),
        ([0.5, 0.2, 0.6, 0.1], 1),
    ],
)
def test_evaluations_since_the_best(values: list[float], count: int) -> None:
    assert since_best(list(enumerate(values, 1))) == count


def test_a_run_ends_early_as_if_it_were_done(
    recipe: Path, tmp_path: Path, stopped: tuple[Path, str]
) -> None:
    folder, said = stopped
    whole, _ = run(recipe, tmp_path / "whole", "eval_every=1", "save_steps=1", "keep=best")
    words = "stopped after step 4 (stop_after): eval_avg of the last 2 evaluations never was above"
    assert f"{words} 0.500 of step 2\n" in said
    # Up to there it is the run without stop_after, and it has saved its last step.
    assert list(checkpoints(folder)) == [3, 4]
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        found, expected = ((x / "checkpoint-4" / name).read_bytes() for x in (folder, whole))
        assert found == expected, name
    assert weights(folder / "model") == weights(folder / "checkpoint-4")
    metrics = killed.evidence(folder)["metrics"]
    assert [x["step"] for x in metrics if "eval_avg" in x] == [1, 2, 3, 4]
    assert "train_loss" in metrics[-1]
    assert weights(folder / "best") != weights(folder / "model")
    assert json.loads((folder / "best/best.json").read_text())["step"] == 2
    assert list(RunFolder(folder).evaluations()) == ["base", "trained", "best"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert "is finished" in run(recipe, folder.parent, *STOP, resume=True)[1]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("step", rest_slow([0, 3, 4], lambda step: step == 4))
def test_a_run_that_goes_on_ends_at_the_same_step(
    recipe: Path, tmp_path: Path, stopped: tuple[Path, str], step: int
) -> None:
    """Killed between its last checkpoint and its end, or before."""
    expected = killed.evidence(stopped[0])
    folder = shutil.copytree(stopped[0], tmp_path / "runs/run")
    shutil.rmtree(folder / "model")
    for later, path in checkpoints(folder).items():
        if later > step:
            shutil.rmtree(path)
    _, said = run(recipe, tmp_path / "runs", *STOP, resume=True)
    assert "stopped after step 4 (stop_after)" in said
    found = killed.evidence(folder)
    for part in expected:
        assert found[part] == expected[part], part


@pytest.mark.slow
def test_it_goes_on_where_more_patience_is_asked_for(
    recipe: Path, tmp_path: Path, stopped: tuple[Path, str]
) -> None:
    folder = shutil.copytree(stopped[0], tmp_path / "runs/run")
    checkpoint = f"resume_from_checkpoint={folder}/checkpoint-4"
    _, said = run(recipe, tmp_path / "runs", *STOP, "stop_after=3", checkpoint)
    assert "changed since the run began: stop_after: 2 -> 3" in said
    assert json.loads((folder / "best/best.json").read_text())["step"] == 5
    assert "(stop_after)" not in said


def test_without_any_value_it_ends_too(
    recipe: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    told |= dict.fromkeys(told, math.nan)
    more = ["eval_every=1", "stop_after=2", "best_metric=eval_pass", "save_strategy='no'"]
    folder, said = run(recipe, tmp_path / "runs", *more)
    told |= VALUES
    assert "after step 2 (stop_after): eval_pass of the last 2 evaluations never had a" in said
    assert not list(folder.glob("checkpoint-*"))  # none was wanted
    assert not list(folder.glob("best*"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_the_next_stage_begins_with_the_best_where_it_is_kept(
    recipe: Path, tmp_path: Path, keep: bool
) -> None:
    data = yaml.safe_load(recipe.read_text())
    rollouts = {key: data.pop(key) for key in ("num_generations", "micro_batch_size")}
    first_stage = {"method": "sft", "eval_every": 1, "stop_after": 2}
    first_stage |= {"keep": "best"} if keep else {}
    data |= {"save_strategy": "no", "stages": [first_stage, {"max_steps": 1, **rollouts}]}
    path = recipe.with_name("stages.yaml")
    path.write_text(yaml.safe_dump(data))
    last, _ = run(path, tmp_path / "runs")
    first = tmp_path / "runs/run-1-sft"
    assert [x["step"] for x in RunFolder(first).metrics() if "eval_avg" in x] == [1, 2, 3, 4]
    assert last.name == "run-2-prefix_rft"
    started = Path(RunFolder(last).recipe()["model"])
    assert started == (first / ("best" if keep else "model")).resolve()
    # Known again when it goes on.
    shutil.rmtree(last / "model")
    assert run(path, tmp_path / "runs", resume=True)[0] == last


BY_PROCESS = '''
import os
def one_sided(completions, answer, **kwargs):
    """To the first process more digits are better, to the other one fewer."""
    sign = 1 if os.environ["RANK"] == "0" else -1
    return [sign * 0.01 * sum(x.isdigit() for x in c) for c in completions]
'''


@pytest.mark.slow
def test_processes_that_measure_otherwise_end_together(recipe: Path, tmp_path: Path) -> None:
    """What the first one measures holds for both; on its own the other would not stop there."""
    (recipe.parent / "by_process.py").write_text(BY_PROCESS)
    more = [
        *("reward=by_process:one_sided", "eval_data=train.jsonl", "max_steps=30"),
        *("eval_every=1", "keep=best", "stop_after=2", "save_steps=1", "learning_rate=3e-3"),
    ]
    port = killed.free_port()
    both = [
        killed.start_one_of_two(rank, port, recipe, tmp_path / "runs", overrides=more)
        for rank in (0, 1)
    ]
    ended = [(p.communicate(timeout=120)[1], p.returncode) for p in both]
    assert [code for _, code in ended] == [0, 0], ended
    folder = tmp_path / "runs/run"
    lines = [x for x in RunFolder(folder).metrics() if "eval_avg" in x]
    steps, values = zip(*((x["step"], x["eval_avg"]) for x in lines), strict=True)
    assert list(steps) == list(range(1, len(steps) + 1))
    assert min(values) >= 0 < max(values)  # of the first process
    first = values.index(max(values))
    assert len(values) == first + 3 < 30
    assert json.loads((folder / "best/best.json").read_text())["step"] == first + 1
    assert list(RunFolder(folder).evaluations()) == ["base", "trained", "best"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stop_after=2"], "recipe key 'stop_after' has no effect without eval_every"),
        (["eval_every=1", "stop_after=0"], "'stop_after' must be at least 1, got 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(recipe: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        configure(str(recipe), overrides).close()
