"""From records to the numbers of the tables, by hand."""

import csv
import io
import math
from pathlib import Path

import pytest
from compare_records import finish, make_board
from rich.console import Console

from prefix_rft.compare import tables
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.tables import number
from prefix_rft.compare.view import as_csv, as_markdown, show
from prefix_rft.compare.work import compact, expand
from prefix_rft.evaluation.samples import Sample
from prefix_rft.evaluation.scores import Problem
from prefix_rft.rewards.verdict import CORRECT, TIMEOUT, WRONG, Verdict

ARMS = {
    "arms": {
        "prefix_rft": {},
        "rl": {"method": "dr_grpo", "sweep": {"learning_rate": [0.1, 0.2]}},
        "later/rl": {"method": "dr_grpo", "start": "prefix_rft"},
    },
    "seeds": 2,
    "samples": 4,
}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Two problems, four samples of each; ``later/rl`` lacks its second seed."""
    board = make_board(tmp_path, ARMS)
    finish(board, board.base, [1, 0])
    ours, rl, later = board.comparison.arms
    finish(board, board.job(ours, 0), [2, 4], flops=100.0)
    finish(board, board.job(ours, 1), [4, 4], flops=300.0)
    finish(board, board.job(rl, 0, 0.1), [0, 4], flops=50.0)
    finish(board, board.job(rl, 0, 0.2), [1, 4], flops=70.0)
    finish(board, board.job(rl, 0, 0.4), [0, 2], flops=70.0)  # behind the edge
    finish(board, board.job(rl, 1, 0.2), [2, 4], flops=90.0)
    finish(board, board.job(later, 0), [4, 4], flops=1.0)
    return board


def test_means_and_differences_by_hand(board: Board) -> None:
    base, ours, rl, later = arm_results(board)
    assert [x.name for x in (base, ours, rl, later)] == ["base", "prefix_rft", "rl", "later/rl"]
    assert [x.seeds for x in (base, ours, rl, later)] == [1, 2, 2, 1]
    cell = rl.cells["held-out"][1.0]
    # At rate 0.2, the better one: seeds (1/4, 1), (2/4, 1); Prefix-RFT has (2/4, 1), (1, 1).
    assert cell.avg.mean == pytest.approx((0.25 + 1 + 0.5 + 1) / 4)
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx((-0.25 + 0 - 0.5 + 0) / 4)
    assert cell.less_base is not None
    assert cell.less_base.mean == pytest.approx((0 + 1 + 0.25 + 1) / 4)
    # Means of seeds 0.625 and 0.75: standard deviation 0.125 / sqrt(2).
    assert cell.spread == pytest.approx(0.125 / math.sqrt(2))
    # pass@2 of 1, 4, 2, 4 correct among 4: 1 - 3/6, 1, 1 - 1/6, 1.
    assert cell.pass_at[2].mean == pytest.approx((0.5 + 1 + 5 / 6 + 1) / 4)
    assert (cell.truncated, cell.no_answer, cell.tokens) == (0.25, 0.5, 7.0)
    assert rl.swept == "learning_rate 0.2 of 0.1, 0.2, 0.4"
    assert rl.costs.flops == 80.0
    assert ours.cells["held-out"][1.0].difference is None
    assert base.cells["held-out"][1.0].less_base is None


def test_the_interval_is_over_seeds_and_problems(board: Board) -> None:
    from prefix_rft.evaluation.estimates import over_seeds, paired

    rl = arm_results(board)[2].cells["held-out"][1.0]
    assert rl.avg == over_seeds([[0.25, 1], [0.5, 1]])
    assert rl.difference == paired([[0.25, 1], [0.5, 1]], [[0.5, 1], [1, 1]])


def test_a_seed_that_is_missing_is_not_paired_away(board: Board) -> None:
    """``later/rl`` has seed 0 only: it is paired with seed 0 of the reference, and marked."""
    later = arm_results(board)[3]
    difference = later.cells["held-out"][1.0].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.25)  # (4, 4) against (2, 4) of 4
    assert later.costs.flops == 101.0  # with the run that it starts from
    assert "later/rl (1 of 2 seeds)" in as_markdown(board, arm_results(board))


def test_base_is_compared_with_the_mean_of_the_reference(board: Board) -> None:
    difference = arm_results(board)[0].cells["held-out"][1.0].difference
    assert difference is not None
    assert difference.mean == pytest.approx((0.25 + 0) / 2 - (0.75 + 1) / 2)


def test_csv_holds_the_numbers(board: Board) -> None:
    rows = {r["arm"]: r for r in csv.DictReader(io.StringIO(as_csv(arm_results(board))))}
    assert list(rows) == ["base", "prefix_rft", "rl", "later/rl"]
    assert float(rows["rl"]["mean"]) == pytest.approx(0.6875)
    assert float(rows["rl"]["difference"]) == pytest.approx(-0.1875)
    assert rows["prefix_rft"]["difference"] == ""
    assert (rows["rl"]["set"], rows["rl"]["temperature"]) == ("held-out", "1.0")
    assert float(rows["rl"]["flops"]) == 80.0
    assert rows["rl"]["seeds"] == "2"


def test_costs_show_pass_at_all_samples(board: Board) -> None:
    block = tables.costs(board, arm_results(board))
    rows = {row[0]: dict(zip(block.head, row, strict=True)) for row in block.rows}
    assert rows["rl"]["pass@4"] == "100.0"  # some sample of every problem is right; the mean is 69
    assert rows["base"]["pass@4"] == "50.0"
    assert (rows["rl"]["FLOPs"], rows["rl"]["steps"], rows["rl"]["sampled"]) == ("80", "100", "10")


def test_terminal_fits_eighty_columns(board: Board) -> None:
    console = Console(width=80, file=io.StringIO())
    show(console, board, arm_results(board))
    said = console.file.getvalue()  # pyright: ignore
    assert max(map(len, said.splitlines())) <= 80
    assert "68.8" in said  # rl
    assert "-18.8" in said
    assert "rl: learning_rate 0.2 of 0.1, 0.2, 0.4" in said
    assert "…" not in said


def test_numbers_for_people() -> None:
    values = (0, 999, 12_345, 6e6, 7.5e9, 1.23e12, 1.2e18)
    assert list(map(number, values)) == ["0", "999", "12.3k", "6.0M", "7.5G", "1.2T", "1.2e18"]


# ---- what a record keeps ---------------------------------------------------------------------


def problem(number: int, *statuses: str, reward: float | None = None) -> Problem:
    verdicts = [Verdict(s, reward if s == WRONG else None) for s in statuses]
    return Problem(number, {}, [Sample("x", 3, False, v) for v in verdicts])


@pytest.mark.parametrize("reward", [None, 0.25])
@pytest.mark.parametrize("last", [CORRECT, TIMEOUT])
def test_nothing_is_lost(last: str, reward: float | None) -> None:
    problems = [
        problem(0, CORRECT, WRONG, last, reward=reward),
        problem(1, WRONG, WRONG, WRONG, reward=reward),
        problem(2, TIMEOUT, TIMEOUT, TIMEOUT),
    ]
    found = expand(compact(problems))
    assert found["correct"] == [1 + (last == CORRECT), 0, 0]
    assert found["graded"] == [2 + (last == CORRECT), 3, 0]
    assert found["reward"] == [p.reward for p in problems]
    assert (found["truncated"], found["no_answer"], found["tokens"]) == (0, 0, 3)
