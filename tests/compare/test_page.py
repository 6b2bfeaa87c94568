"""The page of a comparison: its numbers, untrusted words, and a real browser."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from compare_records import finish, make_board

from browser import console, need_browser, widths
from prefix_rft.compare import tables
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.page import verdict, write_page
from prefix_rft.compare.results import arm_results, mean_path
from prefix_rft.compare.work import DONE
from prefix_rft.evaluation.estimates import Estimate

HOSTILE = "<script>console.error(1)</script>\x1b[31m\u202e|"
ARMS = {
    "arms": {
        "prefix_rft": {},
        "rl": {"method": "dr_grpo"},
        "rl/long-name-of-an-arm": {"method": "dr_grpo", "start": "rl"},
    },
    "seeds": 2,
    "samples": 4,
}


def add(board: Board, arm: str, seed: int, **more: Any) -> None:
    """Put more into a record."""
    path = board.final(board.comparison.arm(arm), seed).folder / DONE
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    board.records.clear()


def points(*values: float) -> list[dict[str, float]]:
    return [
        {"step": 10.0 * i, "sft_loss": 1 - v, "reward_0": v, "reward_0.5": v + 0.25}
        for i, v in enumerate(values)
    ]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = make_board(tmp_path, ARMS)
    finish(board, board.base, [1, 0])
    for arm in board.comparison.arms:
        for seed in (0, 1):
            finish(board, board.job(arm, seed), [2 + seed, 4], other=[1, 1])
            columns = {HOSTILE: ["easy", HOSTILE]}
            add(board, arm.name, seed, columns=columns, trajectory=points(0.25, 0.5 + seed / 4))
    path = board.base.folder / DONE
    record = json.loads(path.read_text()) | {
        "trajectory": points(0.125)[:1],
        "columns": {HOSTILE: ["easy", HOSTILE]},
        "machine": {"device": HOSTILE, "git": {"commit": "a" * 40, "dirty": True}},
    }
    record["sets"]["other"] = record["sets"]["held-out"]
    path.write_text(json.dumps(record))
    board.records.clear()
    return board


def page_of(board: Board) -> Path:
    return write_page(board, arm_results(board))


def test_numbers_and_words(board: Board) -> None:
    text = page_of(board).read_text(encoding="utf-8")
    assert "Against prefix_rft" in text
    assert "no difference shown" in text  # the arms are the same
    assert "81.2 [" in text  # (2/4 + 3/4 + 1 + 1) / 4
    assert "On other" in text
    assert "aaaaaaaaa (changed since)" in text
    for title in ("pass@k, T = 1", "Reward against SFT loss along training", "What half of a"):
        assert title in text
    assert (board.folder / "comparison.md").is_file()


def test_nothing_from_data_runs(board: Board) -> None:
    text = page_of(board).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=.?(http|//)", text)


def test_other_sets_are_compared_with_the_base(board: Board) -> None:
    [block] = tables.other_sets(board, arm_results(board))
    assert block.title == "On other"
    rows = {row[0]: row[-1] for row in block.rows}
    assert rows["base"] == ""
    assert rows["rl"].startswith("+12.5 [")  # (1/4, 1/4) less (1/4, 0), at both seeds


def test_a_bar_in_a_name_does_not_end_a_cell(board: Board) -> None:
    page_of(board)
    rows = (board.folder / "comparison.md").read_text(encoding="utf-8").split("\n")
    head = next(row for row in rows if "<script>" in row and row.startswith("| arm"))
    assert len(re.findall(r"(?<!\\)\|", head)) == 4  # arm, easy, the other


def test_means_along_training(board: Board) -> None:
    path = mean_path(board, "rl")
    # The base, then the means over two seeds.
    assert [p["reward_0"] for p in path] == [0.125, 0.25, 0.625]
    assert [p["step"] for p in path] == [0, 0, 10]
    page_of(board)
    table = (board.folder / "comparison.md").read_text()
    assert "| rl | 10 | 0.375 | 62.5 | 87.5 | 25.0 |" in table
    after = mean_path(board, "rl/long-name-of-an-arm")
    assert after[0] == {**path[-1], "step": 0.0}


def test_words_of_a_difference() -> None:
    assert verdict(Estimate(0.1, 0.05, 0.15, 9)) == "ahead"
    assert verdict(Estimate(-0.1, -0.15, -0.05, 9)) == "behind"
    assert verdict(Estimate(0.1, -0.05, 0.25, 9)) == "no difference shown"


def test_in_a_browser(board: Board) -> None:
    need_browser()
    page = page_of(board)
    assert console(page) == []
    for width in (390, 1280):
        found = widths(page, f"width{width}", page.read_text(encoding="utf-8"), width)
        assert found == (width, width)
