"""A comparison whose problems, parts or sets could not all be graded."""

import json
import math
from pathlib import Path

from compare_records import finish, make_board

from prefix_rft.compare import tables
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.view import as_csv
from prefix_rft.compare.work import DONE
from prefix_rft.evaluation.estimates import over_graded, seed_spread


def test_a_comparison_with_ungraded_parts_and_sets(tmp_path: Path) -> None:
    board = make_board(
        tmp_path, {"arms": {"x": {"seed": 0}, "y": {"seed": 0}}, "seeds": 2, "reference": "x"}
    )
    runs = [board.base, *(board.job(a, s) for a in board.comparison.arms for s in (0, 1))]
    for job in runs:
        finish(board, job, correct=(0, 4, 0), other=(0, 0))
        record = json.loads((job.folder / DONE).read_text())
        record["sets"]["held-out"]["1"]["graded"] = [4, 3, 0]
        record["sets"]["held-out"]["1"]["correct"] = [0, 3, 0]
        record["sets"]["other"]["1"]["graded"] = 0
        record["columns"] = {"subject": ["a", "a", "b"]}
        (job.folder / DONE).write_text(json.dumps(record))
    board.records.clear()
    found = arm_results(board)
    assert [x.name for x in found] == ["base", "x", "y"]
    [block] = tables.parts(board, found)
    assert block.head == ["arm", "a", "b"]
    assert [row[2] for row in block.rows] == ["ungraded"] * 3
    cell = found[1].cells["held-out"][1.0]
    assert (cell.problems, cell.avg.n, cell.avg.mean) == (3, 2, 0.5)
    assert (cell.pass_at[2].n, cell.pass_at[4].n) == (2, 1)
    assert all("(n = 2)" in row[1] for row in tables.results(board, found).rows)
    [passes] = tables.pass_at(board, found)
    assert "(n = 2)" in passes.rows[0][1]
    assert "(n = 1)" in passes.rows[0][3]
    assert [row[1] for row in tables.other_sets(board, found)[0].rows] == ["ungraded"] * 3
    assert "nan" not in as_csv(found)
    assert found[2].cells["other"][1.0].difference is None


def test_estimates_of_nothing() -> None:
    none = over_graded([[math.nan, 1.0], [1.0, math.nan]])
    assert (none.n, math.isnan(none.mean)) == (0, True)
    assert over_graded([[1.0, math.nan], [0.0, 1.0]]).n == 1
    assert math.isnan(seed_spread([[math.nan, math.nan], [1.0, 1.0]]))
