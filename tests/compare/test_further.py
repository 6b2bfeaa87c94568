"""A sweep whose best value lies at its edge is not over."""

from pathlib import Path
from typing import Any

import pytest
from compare_records import finish, make_board

from prefix_rft.compare.command import read_board
from prefix_rft.compare.further import one_further
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import arm_results


@pytest.mark.parametrize(
    ("values", "best", "beyond"),
    [
        ([1e-4, 3e-4, 1e-3], 3e-4, None),
        ([1e-4, 3e-4, 1e-3], 1e-3, 3.33333e-3),
        ([1e-3, 1e-4, 3e-4], 1e-4, 3.33333e-5),  # whatever their order
        ([0.2, 0.4], 0.4, 0.8),
        ([100, 200], 200, 400),
        ([2, 1], 1, None),  # half a step
        ([1, 2], 2, 4),
        ([3e-4], 3e-4, None),
        ([3e-4, 3e-4], 3e-4, None),
        ([0.0, 0.1], 0.1, None),  # no ratio
        ([False, True], True, None),
        (["high", "low"], "low", None),
    ],
)
def test_the_value_behind_the_edge(values: list[Any], best: Any, beyond: float | None) -> None:
    assert one_further(values, best) == (None if beyond is None else pytest.approx(beyond))


def swept(folder: Path, **settings: Any) -> Board:
    arms = {"rl": {"method": "dr_grpo", "sweep": {"learning_rate": [0.1, 0.2]}}}
    return make_board(folder, {"arms": arms, "seeds": 2, "reference": "rl", **settings})


def finish_sweep(board: Board, *correct: int) -> None:
    for job, c in zip(board.sweep(board.comparison.arm("rl")), correct, strict=True):
        finish(board, job, [c, 0], 8)


def test_one_more_run_decides(tmp_path: Path) -> None:
    board = swept(tmp_path)
    arm = board.comparison.arm("rl")
    assert board.total() == 1 + 2 + 1
    finish_sweep(board, 3, 5)
    assert board.chosen(arm) is None
    assert [j.value for j in board.sweep(arm)] == [0.1, 0.2, 0.4]
    assert "rl learning_rate=0.4, seed 0" in [j.name for j in board.jobs()]
    assert board.total() == 1 + 3 + 1
    finish_sweep(board, 3, 5, 4)
    assert board.chosen(arm) == 0.2
    assert arm_results(board)[0].swept == "learning_rate 0.2 of 0.1, 0.2, 0.4"


def test_only_one(tmp_path: Path) -> None:
    board = swept(tmp_path)
    finish_sweep(board, 3, 5)
    finish_sweep(board, 3, 5, 8)
    assert board.chosen(board.comparison.arm("rl")) == 0.4
    assert len(list(board.jobs())) == board.total() == 1 + 3 + 1
    assert arm_results(board)[0].swept == "learning_rate 0.4 of 0.1, 0.2, 0.4 (at the edge)"


def test_a_sweep_as_it_is_written(tmp_path: Path) -> None:
    board = swept(tmp_path, further=False)
    finish_sweep(board, 3, 5)
    assert board.chosen(board.comparison.arm("rl")) == 0.2


RECIPE = """
model: base
train_data: train.jsonl
eval_data: test.jsonl
reward: exact
max_steps: 10
compare:
  arms:
    keep: {method: prefix_rft, sweep: {method.entropy_keep: [0.5, 1.0]}}
    rate: {method: prefix_rft, sweep: {learning_rate: [0.5, 1.0]}}
"""


def test_a_value_that_no_run_takes_is_not_tried(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "p", "answer": "1", "demonstration": "1"}\n')
    (tmp_path / "base").mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe, output = str(tmp_path / "recipe.yaml"), str(tmp_path / "out")
    board = read_board(recipe, [], None, None, None, output)
    keep, rate = board.comparison.arm("keep"), board.comparison.arm("rate")
    assert not board.usable(keep, 2.0)  # a share above 1
    assert board.usable(keep, 0.25)
    assert board.usable(rate, 2.0)
