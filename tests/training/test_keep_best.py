"""``keep: best``: which weights are kept, that training is not changed by it, and resuming."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import killed_runs as killed
import pytest
from scripted import run, script, weights, write_task

from prefix_rft.engines.models import load_model
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate
from prefix_rft.report import write_report
from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.runs.evaluations import HeldOut
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.errors import UserError
from prefix_rft.training.resume import model_of
from prefix_rft.training.train import train
from tables import rest_slow
from tiny import make_rows

VALUES = {1: 0.2, 2: 0.5, 3: math.nan, 4: 0.5, 5: 0.4}
"""By step. The best is that of step 2: of equal ones the first."""
KEEP = ["eval_every=1", "keep=best", "save_steps=1", "save_total_limit=null"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def values() -> Iterator[dict[int, float]]:
    """What evaluations along the way find, by step."""
    values = dict(VALUES)
    with pytest.MonkeyPatch.context() as patch:
        script(patch, values)
        yield values


@pytest.fixture
def told(values: dict[int, float]) -> Iterator[dict[int, float]]:
    """The same for one test, which may change it."""
    yield values
    values |= VALUES


@pytest.fixture(scope="module")
def kept(
    recipe: Path, values: dict[int, float], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished run, not to be changed, and what it said."""
    return run(recipe, tmp_path_factory.mktemp("kept"), *KEEP)


def evaluations(folder: Path) -> dict[str, HeldOut]:
    return RunFolder(folder).evaluations()


def test_the_best_weights_are_kept_beside_the_last(
    recipe: Path, tmp_path: Path, kept: tuple[Path, str]
) -> None:
    without, _ = run(recipe, tmp_path / "without", "eval_every=1", *KEEP[2:])
    folder, said = kept
    assert weights(folder / "best") == weights(folder / "checkpoint-2")
    assert weights(folder / "model") == weights(without / "model") != weights(folder / "best")
    note = json.loads((folder / "best/best.json").read_text())
    assert note == {"step": 2, "metric": "eval_avg", "value": 0.5}
    # The run is that without it, but for the folders.
    expected, found = killed.evidence(without), killed.evidence(folder)
    assert found["metrics"] == expected["metrics"]
    assert {k: v for k, v in found["files"].items() if "best" not in k} == expected["files"]
    assert sorted({*found["names"]} - {*expected["names"]}) == ["best", "best-1"]  # checkpoint-1's
    # What the table says of it is what an evaluation of that folder says.
    model, tokenizer = load_model(str(folder / "best"))
    with_reward = configure(str(recipe), [])
    request = Request(2, 1.0, 24, seed=42, batch_size=4)
    by_hand = evaluate(model, tokenizer, make_rows(3, seed=1), with_reward.rewards[0], request)
    with_reward.close()
    numbers = evaluations(folder)
    assert list(numbers) == ["base", "trained", "best"]
    assert numbers["best"] == HeldOut(**{**vars(by_hand), "step": 2})
    assert numbers["best"].per_problem != numbers["trained"].per_problem
    assert re.search(rf"best, step 2 │ +{numbers['best'].mean:.1%}", said)
    assert "best was chosen on these problems, so its number flatters it" in said
    assert "step 4/5  held-out 0.500  best 0.500 at step 2\n" in said
    assert model_of(folder) == str((folder / "best").resolve())  # where a next stage begins
    page = write_report([str(folder)], str(tmp_path / "page.html")).read_text()
    assert "best, step 2" in page
    assert "The best was chosen by evaluations along the way on these same problems" in page


@pytest.mark.parametrize("step", rest_slow([1, 2, 3, 5], lambda step: step == 3))
def test_a_run_that_goes_on_keeps_the_same_best(
    recipe: Path, tmp_path: Path, kept: tuple[Path, str], step: int
) -> None:
    """Also from a checkpoint at which another one was the best."""
    expected = killed.evidence(kept[0])
    folder = shutil.copytree(kept[0], tmp_path / "runs/run")
    run(recipe, tmp_path / "runs", *KEEP, f"resume_from_checkpoint={folder}/checkpoint-{step}")
    found = killed.evidence(folder)
    for part in expected:
        assert found[part] == expected[part], part


@pytest.mark.slow
def test_another_metric_chooses_another_step(
    recipe: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    """eval_pass is 0.8, 0.5, none, 0.5, 0.6; where checkpoints are few, few bests stay."""
    more = ["eval_every=1", "keep=best", "best_metric=eval_pass", "save_strategy='no'"]
    folder, said = run(recipe, tmp_path / "runs", *more)
    assert json.loads((folder / "best/best.json").read_text())["step"] == 1
    assert [p.name for p in folder.glob("best*")] == ["best"]
    assert "held-out 0.400  best eval_pass 0.800 at step 1\n" in said


@pytest.mark.slow
def test_the_last_step_may_be_the_best(
    recipe: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    told[5] = 0.6
    folder, said = run(recipe, tmp_path / "runs", *KEEP[:2], "save_strategy='no'")
    assert [p.name for p in folder.glob("best*")] == ["best"]
    assert weights(folder / "best") == weights(folder / "model")
    numbers = evaluations(folder)
    assert numbers["best"] == HeldOut(**{**vars(numbers["trained"]), "step": 5})
    assert "evaluating the best" not in said  # the same weights


@pytest.mark.slow
def test_without_any_value_there_is_no_best(
    recipe: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    told |= dict.fromkeys(told, math.nan)
    folder, said = run(recipe, tmp_path / "runs", *KEEP[:2], "save_strategy='no'")
    assert not list(folder.glob("best*"))
    assert list(evaluations(folder)) == ["base", "trained"]
    assert "flatters" not in said
    assert model_of(folder) == str((folder / "model").resolve())


@pytest.mark.slow
def test_a_run_that_ended_before_its_best_was_evaluated_goes_on(
    recipe: Path, tmp_path: Path, kept: tuple[Path, str]
) -> None:
    expected = killed.evidence(kept[0])
    folder = shutil.copytree(kept[0], tmp_path / "runs/run")
    whole = (folder / "eval.json").read_text()
    data = json.loads(whole)
    del data["best"]
    (folder / "eval.json").write_text(json.dumps(data))
    run(recipe, tmp_path / "runs", *KEEP, resume=True)
    assert (folder / "eval.json").read_text() == whole
    assert killed.evidence(folder) == expected
    assert "is finished" in run(recipe, tmp_path / "runs", *KEEP, resume=True)[1]


def test_what_cannot_be_compared_is_refused_before_anything_is_touched(
    recipe: Path, tmp_path: Path, kept: tuple[Path, str]
) -> None:
    folder = shutil.copytree(kept[0], tmp_path / "runs/run")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}
    again = [*KEEP, f"runs={tmp_path}/runs", f"resume_from_checkpoint={folder}/checkpoint-4"]
    for more, words in (
        (["best_metric=eval_pass"], "began with best_metric null, and this recipe has eval_pass"),
        (["~keep"], "began with keep best, and this recipe has null"),
        (["eval_problems=2"], "began with eval_problems null, and this recipe has 2"),
    ):
        with pytest.raises(UserError, match=words):
            train(str(recipe), [*again, *more], killed.QUIET)
    shutil.move(folder / "best", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="up to checkpoint-4, those of step 2, are gone"):
        train(str(recipe), again, killed.QUIET)
    shutil.move(tmp_path / "elsewhere", folder / "best")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"} == before
    assert set(checkpoints(folder)) == {1, 2, 3, 4, 5}


@pytest.mark.slow
def test_of_an_adapter_the_best_is_an_adapter(
    recipe: Path, tmp_path: Path, told: dict[int, float]
) -> None:
    pytest.importorskip("peft")
    more = ["peft={r: 2, target_modules: all-linear}", *KEEP]
    folder, _ = run(recipe, tmp_path / "runs", *more)
    adapter = folder / "best/adapter_model.safetensors"
    assert adapter.read_bytes() == (folder / "checkpoint-2/adapter_model.safetensors").read_bytes()
    model, _ = load_model(str(folder / "best"))
    assert list(model.peft_config) == ["default"]
    assert evaluations(folder)["best"].step == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["keep=best"], "recipe key 'keep' has no effect without eval_every"),
        (["eval_every=1", "keep=bset"], "unknown value of recipe key 'keep' 'bset': did you mean"),
        (
            ["eval_every=1", "best_metric=eval_pass"],
            "'best_metric' has no effect without keep or stop_after",
        ),
        (
            ["eval_every=1", "keep=best", "best_metric=eval_pas"],
            "unknown best_metric 'eval_pas': did you mean 'eval_pass'?",
        ),
        (["load_best_model_at_end=true"], "cannot be set: give keep: best"),
        (["metric_for_best_model=eval_avg"], "cannot be set: give best_metric"),
    ],
)
def test_mistakes_are_told_in_a_sentence(recipe: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        configure(str(recipe), overrides).close()
    assert len(str(refused.value).splitlines()) == 1
