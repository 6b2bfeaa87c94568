"""What of a sequence of tasks is run when, and what its records say, without any training."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from continual_tasks import finish, make_board, write_tasks
from rich.console import Console

from browser import console, need_browser, widths
from prefix_rft.cli import main
from prefix_rft.compare import runner
from prefix_rft.compare.continual import run_continual, tables
from prefix_rft.compare.continual.page import write_page
from prefix_rft.compare.continual.results import AVG, BEST, CGL, FM, FM_WITH_BASE, LEARNT, all_ways
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.continual.union import union_of
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.orders import order_of
from prefix_rft.data import load_rows
from prefix_rft.evaluation.estimates import over_parts
from prefix_rft.support.errors import UserError

BASE = {"two": [2] * 6, "three": [2] * 6, "arithmetic": [4] * 6}
RUNS: dict[str, dict[str, list[int]]] = {
    "1-two": {"two": [4, 4, 4, 4, 4, 1], "three": [1, 2, 2, 2, 2, 1], "arithmetic": [3] * 6},
    "2-three": {"two": [3, 3, 3, 3, 3, 2], "three": [3, 3, 3, 3, 3, 4], "arithmetic": [1] * 6},
    "multi_task": {"two": [4] * 6, "three": [3] * 6, "arithmetic": [2] * 6},
}
"""Right ones of 4 on each problem: P = [[.5, .5], [21/24, 10/24], [17/24, 19/24]]."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def finish_arm(board: Board, arm: str, seed: int, more: int = 0) -> None:
    """Leave all records of an arm at a seed; ``more`` right ones on a problem at the end."""
    for name, sets in RUNS.items():
        own = {k: list(v) for k, v in sets.items()}
        if name == "2-three":
            own["two"][0] += more
        finish(board, f"{arm}/{name}", seed, **own)


def finished(recipe: Path, folder: Path) -> tuple[Board, Continual]:
    board, continual = make_board(recipe, output=str(folder / "out"))
    finish(board, "base", 0, **BASE)
    for seed in (0, 1):
        finish_arm(board, "rl", seed)
        finish_arm(board, "sft", seed, more=-seed)
    return board, continual


def able(board: Board) -> list[str]:
    return [j.name for j in board.jobs() if not board.done(j) and board.able(j)]


def test_stages_wait_for_one_another(recipe: Path, tmp_path: Path) -> None:
    board, _ = make_board(recipe, output=str(tmp_path / "out"))
    assert board.total() == 1 + 2 * 3 * 2
    first = [f"{arm}/{name}, seed {seed}" for seed in (0, 1) for arm in ("sft", "rl")
             for name in ("1-two", "multi_task")]  # fmt: skip
    assert able(board) == ["base", *first]
    finish(board, "sft/1-two", 0, **RUNS["1-two"])
    assert "sft/2-three, seed 0" in able(board)
    assert "sft/2-three, seed 1" not in able(board)
    job = board.job(board.comparison.arm("sft/2-three"), 0)
    order = order_of(board, job)
    assert order["keys"]["model"].endswith("out/arms/sft/1-two/seed-0/model")
    assert order["keys"]["train_data"] == "three/train.jsonl"


def test_every_run_is_evaluated_on_all_tasks(recipe: Path, tmp_path: Path) -> None:
    board, _ = make_board(recipe, output=str(tmp_path / "out"))
    orders = [order_of(board, j) for j in board.jobs() if board.able(j)]
    for order in orders:
        assert [one["name"] for one in order["sets"]] == ["two", "three", "arithmetic"]
        assert [one["max_completion_length"] for one in order["sets"]] == [12, 12, 24]
    at_once = orders[2]
    assert at_once["keys"]["train_data"] == str((tmp_path / "out/union.jsonl").resolve())


def test_rows_of_all_tasks(recipe: Path, tmp_path: Path) -> None:
    board, _ = make_board(recipe, output=str(tmp_path / "out"))
    path = tmp_path / "union.jsonl"
    path.write_text(union_of(board.tasks))
    rows = load_rows(path)
    apart = [load_rows(recipe.parent / name / "train.jsonl") for name in ("two", "three")]
    assert rows["task"] == ["two"] * 20 + ["three"] * 20
    for column in ("prompt", "demonstration", "numbers", "target"):
        assert rows[column] == [*apart[0][column], *apart[1][column]]


def test_a_column_of_that_name_is_refused(tmp_path: Path) -> None:
    recipe = write_tasks(tmp_path)
    path = tmp_path / "two/train.jsonl"
    lines = [json.loads(line) | {"task": "mine"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    board, _ = make_board(recipe)
    with pytest.raises(UserError, match="task 'two': its rows have a column 'task'"):
        union_of(board.tasks)


def test_the_order_of_tasks_matters(recipe: Path, tmp_path: Path) -> None:
    board, continual = make_board(recipe, output=str(tmp_path / "out"))
    finish(board, "base", 0, **BASE)
    board.check()
    two, three = (dict(continual.tasks[name]) for name in ("two", "three"))
    tasks = json.dumps({"three": three, "two": two})
    turned, _ = make_board(recipe, f"continual.tasks={tasks}", output=str(tmp_path / "out"))
    assert [arm.name for arm in turned.comparison.arms][:2] == ["sft/1-three", "sft/2-two"]
    with pytest.raises(UserError, match="was run with another 'recipe'"):
        turned.check()


def test_numbers_by_hand(recipe: Path, tmp_path: Path) -> None:
    board, continual = finished(recipe, tmp_path)
    ways = all_ways(board, continual, 1.0)
    assert [way.label for way in ways] == [
        *("base", "sft", "sft, all at once", "rl", "rl, all at once")
    ]
    base, sft, _, rl, at_once = ways
    assert base.measures[AVG].mean == pytest.approx(0.5)
    P = [[12 / 24, 12 / 24], [21 / 24, 10 / 24], [17 / 24, 19 / 24]]
    assert rl.matrices[0] == pytest.approx(np.array(P))
    assert rl.measures[AVG].mean == pytest.approx(0.75)
    assert rl.measures[BEST].mean == pytest.approx((21 + 19) / 48)
    assert rl.measures[FM].mean == pytest.approx(-4 / 24 / 2)
    assert rl.measures[CGL].mean == pytest.approx(-4 / 24)
    # Own stages less what was there before them: 21/24 - 12/24 and 19/24 - 10/24.
    assert rl.measures[LEARNT].mean == pytest.approx((9 + 9) / 48)
    assert at_once.measures == {AVG: at_once.measures[AVG]}
    assert at_once.measures[AVG].mean == pytest.approx(0.875)
    assert rl.less_at_once is not None
    assert rl.less_at_once.mean == pytest.approx(0.75 - 0.875)
    assert rl.differences == {}
    # One right answer fewer of 24, at one of two seeds, on one of two tasks.
    assert sft.differences[AVG].mean == pytest.approx(-1 / 24 / 4)
    assert sft.differences[FM].mean == pytest.approx(-1 / 24 / 4)
    assert sft.differences[CGL].mean == pytest.approx(-1 / 24 / 2)
    fewer = np.zeros((2, 6))
    fewer[1, 0] = -0.25
    assert sft.differences[AVG] == over_parts([fewer, np.zeros((2, 6))])
    assert rl.kept["arithmetic"].mean == pytest.approx(0.25)
    assert rl.kept_less_base["arithmetic"].mean == pytest.approx(-0.75)
    assert sft.kept_differences["arithmetic"].mean == 0.0
    assert rl.costs.flops == 2000.0  # of both stages
    assert at_once.costs.flops == 1000.0


def test_seeds_that_are_not_through_are_left_out(recipe: Path, tmp_path: Path) -> None:
    board, continual = finished(recipe, tmp_path)
    (board.job(board.comparison.arm("rl/2-three"), 1).folder / "done.json").unlink()
    board.records.clear()
    ways = {way.label: way for way in all_ways(board, continual, 1.0)}
    assert list(ways["rl"].seeds) == [0]
    assert list(ways["rl, all at once"].seeds) == [0, 1]
    assert ways["sft"].differences == {}  # which has a seed that the reference lacks
    [table] = tables.accuracy(board, continual, {1.0: list(ways.values())})
    assert [row[0] for row in table.rows][3] == "rl (1 of 2 seeds)"


def test_the_base_in_the_maximum_is_said(recipe: Path, tmp_path: Path) -> None:
    finished(recipe, tmp_path)
    given = "continual.base_in_max=true"
    board, continual = make_board(recipe, given, output=str(tmp_path / "out"))
    board.check()  # it decides no record
    rl = all_ways(board, continual, 1.0)[3]
    assert FM not in rl.measures
    assert rl.measures[FM_WITH_BASE].mean == pytest.approx(-4 / 24 / 2)


def test_tables_from_records_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, _ = finished(recipe, tmp_path)
    for model in board.folder.rglob("model"):
        model.rmdir()
    command = ["continual", str(recipe), "--output", str(board.folder), "--only-table"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 arms, 2 tasks, 2 seeds: 13 runs, 13 done" in said
    assert "FM (max over stages" in said
    rows = list(csv.DictReader((board.folder / "continual.csv").read_text().splitlines()))
    [fm] = [r for r in rows if r["arm"] == "rl" and r["measure"] == FM]
    assert float(fm["mean"]) == pytest.approx(-4 / 24 / 2)
    found = json.loads((board.folder / "matrices/sft/seed-1/matrix.json").read_text())
    assert found["rows"] == ["base", "after two", "after three"]
    own = found["temperatures"]["1"]
    assert np.array(own["matrix"]) == pytest.approx(
        np.array([[0.5, 0.5], [21 / 24, 10 / 24], [16 / 24, 19 / 24]])
    )
    assert own["AvgAcc"] == pytest.approx(35 / 48)
    assert own[FM] == pytest.approx(-5 / 48)
    assert own[CGL] == pytest.approx(-5 / 24)
    assert own["others"] == {"arithmetic": [1.0, 0.75, 0.25]}
    text = (board.folder / "continual.md").read_text()
    assert "| after two | 87.5 | 41.7 | 75.0 |" in text
    assert "| rl, all at once | 87.5 [87.5, 87.5] |" in text


def test_the_page_in_a_browser(recipe: Path, tmp_path: Path) -> None:
    board, continual = finished(recipe, tmp_path)
    page = write_page(board, continual, {1.0: all_ways(board, continual, 1.0)})
    text = page.read_text(encoding="utf-8")
    assert 'style="--share: 0.875">87.5</td>' in text
    assert "the base is not among those" in text
    assert "<script" not in text
    need_browser()
    assert console(page) == []
    for width in (390, 1280):
        assert widths(page, f"width{width}", text, width) == (width, width)


def test_a_failed_stage_is_said(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for it never start; nothing was left to make a table of."""

    def start(board: Board, job: Any, at_once: int) -> None:
        raise UserError(f"no {job.name}")

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    folder = tmp_path / "failed"
    with pytest.raises(UserError, match=r"sft/2-three, seed 0: waits for a run that failed"):
        run_continual(Console(quiet=True), str(recipe), [], seeds=1, output=str(folder))
    assert (folder / "union.jsonl").is_file()
