"""Which evaluation is the best, by hand, and which folders stay."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest

from prefix_rft.runs import best
from prefix_rft.support.errors import UserError

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([], None),
        ([0.2], (1, 0.2)),
        ([0.2, 0.5, 0.4], (2, 0.5)),
        ([0.5, 0.2, 0.5], (1, 0.5)),  # of equal ones the first
        ([NAN, 0.2, NAN], (2, 0.2)),
        ([0.2, NAN, 0.3], (3, 0.3)),
        ([NAN, NAN], None),
        ([math.inf, 0.1], (2, 0.1)),
        ([-2.0, -3.0], (1, -2.0)),
        ([0.0, -1.0], (1, 0.0)),
        ([0.0, 0.1], (2, 0.1)),
    ],
)
def test_the_best_is_the_first_of_the_highest(
    values: list[float], chosen: tuple[int, float] | None
) -> None:
    assert best.best_of(list(enumerate(values, 1))) == chosen


def test_the_history_is_in_the_log() -> None:
    log = [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 0.1},
        {"step": 2, "eval_avg": 0.25, "eval_pass": 0.5},
        {"step": 4, "eval_avg": None, "eval_pass": 0.75},
    ]
    assert best.history_of(log, "eval_pass") == [(2, 0.5), (4, 0.75)]
    [first, second] = best.history_of(log, "eval_avg")
    assert first == (2, 0.25)
    assert second[0] == 4
    assert math.isnan(second[1])


def made(run: Path, *names: str) -> None:
    for name in names:
        (run / name).mkdir(parents=True)
        step = name.removeprefix("best").removeprefix("-") or "9"
        (run / name / best.NOTE).write_text(f'{{"step": {step}}}')


def there(run: Path) -> list[str]:
    return sorted(p.name for p in run.glob("best*"))


HISTORY = [(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.4), (5, 0.5)]


@pytest.mark.parametrize(
    ("saved", "left"),
    [
        ([], ["best-5"]),  # the best now
        (["checkpoint-5"], ["best-5"]),
        (["checkpoint-3", "checkpoint-5"], ["best-2", "best-5"]),  # and up to step 3
        (["checkpoint-1", "checkpoint-4"], ["best-1", "best-4", "best-5"]),
    ],
)
def test_what_no_checkpoint_goes_on_with_goes(
    tmp_path: Path, saved: list[str], left: list[str]
) -> None:
    made(tmp_path, *saved, *(f"best-{n}" for n in (1, 2, 4, 5)), "best-of-all")
    best.drop_surpassed(tmp_path, HISTORY)
    assert there(tmp_path) == [*left, "best-of-all"]


@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        (["best-2", "best-4"], 3, ["best-2"]),
        (["best-2", "best-4"], 4, ["best-2", "best-4"]),
        (["best-2", "best-4"], 0, []),
        (["best-2", "best"], 9, ["best-2", "best-9"]),  # an ended run that goes on
        (["best-2", "best"], 8, ["best-2"]),
    ],
)
def test_a_run_that_goes_back_has_the_best_of_then(
    tmp_path: Path, before: list[str], step: int, after: list[str]
) -> None:
    made(tmp_path, *before)
    best.reopen(tmp_path, step)
    assert there(tmp_path) == after


def test_at_the_end_it_has_its_name_whatever_stood_there(tmp_path: Path) -> None:
    made(tmp_path, "best-2", "best-4", "best")
    best.settle(tmp_path, 4)
    assert there(tmp_path) == ["best", "best-2"]
    assert json.loads((tmp_path / "best" / best.NOTE).read_text()) == {"step": 4}


@pytest.mark.parametrize(
    ("folders", "fine"),
    [(["best-4"], True), (["best-2"], False), ([], False), (["best"], False)],
)
def test_best_weights_that_are_gone_are_named(
    tmp_path: Path, folders: list[str], fine: bool
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    made(tmp_path, "checkpoint-4", *folders)
    log = [{"step": step, "eval_avg": value} for step, value in HISTORY[:4]]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    words = "up to checkpoint-4, those of step 4, are gone: resume"
    with nullcontext() if fine else pytest.raises(UserError, match=words):
        best.verify_best(checkpoint, "eval_avg")


def test_a_folder_that_says_no_step_is_named(tmp_path: Path) -> None:
    made(tmp_path, "best")
    (tmp_path / "best" / best.NOTE).write_text("{}")
    with pytest.raises(UserError, match=r"best.json' does not say which step"):
        best.reopen(tmp_path, 3)
