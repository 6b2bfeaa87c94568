"""An arm that trains on own answers: what it waits for, what it costs, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from compare_records import finish, make_board
from rich.console import Console

from prefix_rft.compare import tables
from prefix_rft.compare.arms import read_comparison
from prefix_rft.compare.collection import ROWS, Collection
from prefix_rft.compare.costs import Costs, collecting_costs
from prefix_rft.compare.job import Job
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.orders import order_of
from prefix_rft.compare.page import write_page
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.runner import run_all
from prefix_rft.compare.view import as_csv, as_markdown
from prefix_rft.compare.work import DONE
from prefix_rft.evaluation.samples import Request, prefilled
from prefix_rft.support.errors import UserError

OWN: dict[str, Any] = {"method": "prefixrl", "start": "sft", "match": "rl"}
ARMS: dict[str, Any] = {
    "arms": {
        "sft": {"method": "sft", "max_steps": 50},
        "rl": {"method": "dr_grpo"},
        "own": {**OWN, "collect": {"samples": 64, "keep": 2}},
    },
    "seeds": 2,
    "reference": "rl",
}


def collected(board: Board, job: Job, flops: float = 120.0) -> None:
    """Leave a record of a collecting run, and its rows."""
    job.folder.mkdir(parents=True)
    record = {
        "spec": board.spec(job),
        "costs": {"flops": flops, "collected": 40.0, "prefilled": 20.0, "seconds": 1.0},
        "found": {"rows": 9, "solved": 3 + job.seed, "answers": 5, "sampled": 40, "prefilled": 20},
        "machine": {},
        "sets": {},
    }
    (job.folder / ROWS).touch()
    (job.folder / DONE).write_text(json.dumps(record))
    board.records.clear()


def able(board: Board) -> list[str]:
    return [j.name for j in board.jobs() if not board.done(j) and board.able(j)]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Both seeds of ``sft`` and ``rl`` are done."""
    board = make_board(tmp_path, ARMS)
    for seed in (0, 1):
        finish(board, board.job(board.comparison.arm("sft"), seed), flops=300.0, steps=50)
        finish(board, board.job(board.comparison.arm("rl"), seed), flops=1000.0)
    return board


def test_operations_by_hand() -> None:
    # Every token is one forward of seven weights: two operations for each of them.
    found = collecting_costs(sampled=30, prefilled=12, weights=7, seconds=2.0)
    assert found == Costs(collected=30, prefilled=12, flops=2 * 7 * 42, seconds=2.0)
    # None of them are tokens that training has drawn.
    assert (found + Costs(sampled=5, flops=70)).sampled == 5


def test_prompts_are_read_once_in_a_batch() -> None:
    prompts = [[1, 2, 3], [4, 5], [4, 5], [6]]
    # Four rows of two samples in one batch: 3 + 2 + 1, one of them stands there twice.
    assert prefilled(prompts, Request(samples=2, batch_size=8)) == 6
    # Two rows a batch: 3 + 2 and 2 + 1.
    assert prefilled(prompts, Request(samples=2, batch_size=5)) == 8
    # One row in batches of 4, 4 and 2 samples: each prompt is read three times.
    assert prefilled(prompts, Request(samples=10, batch_size=4)) == 3 * (3 + 2 + 2 + 1)


def test_it_collects_before_it_trains(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    own = board.comparison.arm("own")
    assert board.total() == len(list(board.jobs())) == 1 + 4 * 2
    assert able(board) == ["base", *(f"{a}, seed {s}" for s in (0, 1) for a in ("sft", "rl"))]
    finish(board, board.job(board.comparison.arm("sft"), 0), flops=300.0)
    assert "own collecting, seed 0" in able(board)
    finish(board, board.job(board.comparison.arm("rl"), 0), flops=1000.0)
    assert "own, seed 0" not in able(board)
    collected(board, board.collection(own, 0))
    assert "own, seed 0" in able(board)
    assert "own collecting, seed 0" not in able(board)
    # Rows that went missing are collected again, as long as a run needs them.
    (board.collection(own, 0).folder / ROWS).unlink()
    assert "own collecting, seed 0" in able(board)
    finish(board, board.job(own, 0))
    assert "own collecting, seed 0" not in able(board)


def test_matched_steps_by_hand(board: Board) -> None:
    own = board.comparison.arm("own")
    collected(board, board.collection(own, 0), flops=125.0)
    # 1000 operations in all, less 300 for SFT and 125 for collecting; a step costs 10.
    assert board.keys(board.job(own, 0))["max_steps"] == 57
    assert board.spec(board.job(own, 0))["steps"] == 57
    finish(board, board.job(own, 0), flops=570.0, steps=57)
    assert board.costs(board.job(own, 0)).flops == 995.0
    assert board.costs(board.job(own, 0)).collected == 40.0


def test_an_arm_is_matched_with_all_that_it_costs(tmp_path: Path) -> None:
    arms = {"rl": {"method": "dr_grpo", "match": "own"}, "own": {"collect": 4}}
    board = make_board(tmp_path, {"arms": arms})
    own, rl = board.comparison.arm("own"), board.comparison.arm("rl")
    collected(board, board.collection(own, 0), flops=125.0)
    finish(board, board.job(own, 0), flops=1000.0)
    # 1125 operations; a step of ``own`` costs 10, collecting is no part of it.
    assert board.keys(board.job(rl, 0))["max_steps"] == 112


def test_nothing_left_stops_no_other_run(board: Board) -> None:
    own = board.comparison.arm("own")
    for seed in (0, 1):
        collected(board, board.collection(own, seed), flops=701.0)
    finish(board, board.base)
    said: list[str] = []
    failed = run_all(board, 1, said.append)
    assert len(failed) == 2
    for seed, words in enumerate(failed):
        assert words == (
            f"own, seed {seed}: arm 'own' has no step left within the compute of 'rl': what it "
            "collects costs as much"
        )


def test_orders(board: Board) -> None:
    own = board.comparison.arm("own")
    job = board.collection(own, 1)
    order = order_of(board, job)
    assert order["collect"] == {"samples": 64, "keep": 2}
    assert order["seed"] == order["keys"]["seed"] == 1
    assert order["keys"].keys() == {"seed", "model"}  # whatever else the arm says of training
    assert order["keys"]["model"].endswith("arms/sft/seed-1/model")
    collected(board, job)
    keys = order_of(board, board.job(own, 1))["keys"]
    assert keys["train_data"] == str((job.folder / ROWS).resolve())
    assert keys["columns"] == {}
    assert str(job.folder) not in json.dumps(board.spec(board.job(own, 1)))


def test_another_collection_is_noticed(board: Board, tmp_path: Path) -> None:
    own = board.comparison.arm("own")
    collected(board, board.collection(own, 0))
    finish(board, board.job(own, 0), steps=58)
    board.check()
    for collect, what in ((64, "collect"), ({"samples": 63, "keep": 2}, "collect"), (None, "keys")):
        arms = {**ARMS["arms"], "own": {**OWN, "collect": collect}}
        changed = make_board(tmp_path, {**ARMS, "arms": arms})
        # Without any there are more steps to match, which is seen first.
        with pytest.raises(UserError, match=f"another '{what}'"):
            changed.check()
    # So it is by what was trained on it, where the collection itself was deleted.
    (board.collection(own, 0).folder / DONE).unlink()
    make_board(tmp_path, ARMS).check()
    arms = {**ARMS["arms"], "own": {**OWN, "collect": 64}}
    with pytest.raises(UserError, match=r"arms/own/seed-0.* another 'collect'"):
        make_board(tmp_path, {**ARMS, "arms": arms}).check()


def test_a_sweep_collects_once(tmp_path: Path) -> None:
    arms = {"own": {"collect": 4, "sweep": {"learning_rate": [1, 2]}, "learning_rate": 3}}
    board = make_board(tmp_path, {"arms": arms, "seeds": 1})
    own = board.comparison.arm("own")
    assert [j.name for j in board.jobs()] == [
        "base", "own learning_rate=1, seed 0", "own learning_rate=2, seed 0",
        "own collecting, seed 0",
    ]  # fmt: skip
    assert board.total() == 4
    assert able(board) == ["base", "own collecting, seed 0"]
    assert board.spec(board.collection(own, 0))["keys"] == {"seed": 0}
    collected(board, board.collection(own, 0))
    for job in board.sweep(own):
        finish(board, job, flops=7.0)
        assert board.costs(job).flops == 127.0


def test_tables_tell_what_was_collected(board: Board) -> None:
    own = board.comparison.arm("own")
    assert "collected" not in tables.costs(board, arm_results(board)).head
    assert "collected" not in as_csv(arm_results(board))
    for seed in (0, 1):
        collected(board, board.collection(own, seed))
        finish(board, board.job(own, seed), flops=580.0, steps=58)
    found = arm_results(board)
    block = tables.costs(board, found)
    rows = {row[0]: dict(zip(block.head, row, strict=True)) for row in block.rows}
    assert (rows["rl"]["collected"], rows["rl"]["sampled"], rows["rl"]["FLOPs"]) == (
        "", "10", "1.0k"
    )  # fmt: skip
    assert (rows["own"]["collected"], rows["own"]["sampled"]) == ("40", "20")  # sft's are ten
    assert rows["own"]["FLOPs"] == "1.0k"  # 300 + 120 + 580
    words = "5 own answers to 3.5 of 9 rows, of 64 samples of each"
    assert f"- own: {words}" in as_markdown(board, found)
    assert as_csv(found).splitlines()[0].endswith(",collected")
    assert as_csv(found).splitlines()[-1].endswith(",40.0")
    assert f"own: {words}" in write_page(board, found).read_text()


def test_the_terminal_fits_eighty_columns(board: Board) -> None:
    from prefix_rft.compare.view import show

    own = board.comparison.arm("own")
    for seed in (0, 1):
        collected(board, board.collection(own, seed))
        finish(board, board.job(own, seed), flops=580.0, steps=58)
    console = Console(width=80, file=io.StringIO())
    show(console, board, arm_results(board))
    said = console.file.getvalue()  # pyright: ignore
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said


RECIPE: dict[str, Any] = {"learning_rate": 1e-6, "method": "prefixrl"}


def test_forms() -> None:
    def read(collect: Any) -> Collection | None:
        return (
            read_comparison({**RECIPE, "compare": {"arms": {"a": {"collect": collect}}}})
            .arm("a")
            .collect
        )

    assert read(64) == read({"samples": 64, "keep": 1}) == Collection(64, 1)
    assert read({"samples": 8, "keep": 3}) == Collection(8, 3)
    assert read(None) is None


BAD: dict[str, dict[str, Any]] = {
    "key of 'collect' of arm 'a': 'samples' must be a whole number, got 'many'": {
        "a": {"collect": "many"}
    },
    "'samples' must be a whole number, got True": {"a": {"collect": True}},
    "'samples' must be at least 1, got 0": {"a": {"collect": 0}},
    "'keep' must be at least 1, got 0": {"a": {"collect": {"samples": 2, "keep": 0}}},
    "'collect' of arm 'a' needs 'samples'": {"a": {"collect": {"keep": 1}}},
    "did you mean 'samples'": {"a": {"collect": {"sample": 3}}},
    "'reward.tolerance' decides what is collected: make an arm of each value": {
        "a": {"collect": 3, "sweep": {"reward.tolerance": [1, 2]}}
    },
    "of runs of engine 'verl' no operations are counted": {"a": {"collect": 3, "engine": "verl"}},
    "arm 'a' cannot match the operations of 'b' by its number of steps: a step of imitation": {
        "a": {"method": "sft", "collect": 3, "match": "b"},
        "b": {"method": "sft"},
    },
    "cannot match the operations of 'b'": {
        "a": {"method": "sft", "match": "b"},
        "b": {"method": "sft", "collect": 3},
    },
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_comparison({**RECIPE, "compare": {"arms": BAD[message]}})
    assert message in str(refused.value)


def test_refused_on_an_engine_of_all_arms() -> None:
    recipe = {**RECIPE, "engine": "verl", "compare": {"arms": {"a": {"collect": 3}}}}
    with pytest.raises(UserError, match="of runs of engine 'verl' no operations are counted"):
        read_comparison(recipe)
    recipe = {**recipe, "method": "sft", "engine": "trl"}
    recipe["compare"] = {"arms": {"a": {"collect": 3, "match": "b"}, "b": {}}}
    with pytest.raises(UserError, match="a step of imitation"):
        read_comparison(recipe)
