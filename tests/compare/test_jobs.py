"""What is run, in which order, with which settings; what records on disk mean."""

import json
from pathlib import Path

import pytest
from compare_records import finish, make_board

from prefix_rft.compare.jobs import Board
from prefix_rft.compare.work import DONE
from prefix_rft.support.errors import UserError

ARMS = {
    "arms": {
        "sft": {"method": "sft", "max_steps": 50, "sweep": {"learning_rate": [0.1, 0.2, 0.3]}},
        "rl": {"method": "dr_grpo"},
        "sft+rl": {"method": "dr_grpo", "start": "sft", "match": "rl"},
    },
    "seeds": 2,
    "reference": "rl",
}


def names(board: Board) -> list[str]:
    """The runs that could start now."""
    found = [j for j in board.jobs() if not board.done(j) and board.able(j)]
    return [j.name for j in found]


def sweep(board: Board, *correct: int, **sets: list[int]) -> None:
    """Finish the runs that sft's rate is chosen from, with so many correct of 8."""
    arm = board.comparison.arm("sft")
    for job, c in zip(board.sweep(arm), correct, strict=True):
        finish(board, job, [c, 0], 8, flops=300.0, steps=50, **sets)


def test_runs_come_when_they_can(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    assert board.total() == 1 + 3 + 1 + 4  # base, sweep, sft at seed 1, two arms at two seeds
    assert names(board) == [
        "base",
        "sft learning_rate=0.1, seed 0",
        "sft learning_rate=0.2, seed 0",
        "sft learning_rate=0.3, seed 0",
        "rl, seed 0",
        "rl, seed 1",
    ]
    sweep(board, 3, 5, 4)
    assert names(board) == ["base", "rl, seed 0", "sft learning_rate=0.2, seed 1", "rl, seed 1"]
    rl = board.comparison.arm("rl")
    finish(board, board.job(rl, 0), flops=1000.0)
    assert "sft+rl, seed 0" in names(board)
    assert "sft+rl, seed 1" not in names(board)
    assert len(list(board.jobs())) == board.total()


def test_the_best_value_on_validation_rows(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    arm = board.comparison.arm("sft")
    assert board.chosen(arm) is None
    sweep(board, 3, 5, 5)
    assert board.chosen(arm) == 0.2  # the first of equals
    for job, c in zip(board.sweep(arm), (1, 1, 0), strict=True):
        finish(board, job, [3 - c, 0], 8, validation=[c, c])
    # Not by the held-out rows, where there are others; behind the edge nothing is better.
    finish(board, board.job(arm, 0, 0.05), [8, 8], 8, validation=[0, 0])
    assert board.chosen(arm) == 0.1


def test_matched_steps_by_hand(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    sweep(board, 3, 5, 4)
    finish(board, board.job(board.comparison.arm("rl"), 0), flops=1000.0, steps=100)
    job = board.job(board.comparison.arm("sft+rl"), 0)
    # 1000 operations in all, 300 of them for SFT, 10 for a step.
    assert board.keys(job)["max_steps"] == 70
    assert board.spec(job)["steps"] == 70
    assert board.keys(job)["model"].endswith("sft/learning_rate=0.2/seed-0/model")
    finish(board, job, flops=690.0, steps=70)
    assert board.costs(job).flops == 990.0  # with what it started from


def test_nothing_left_to_match(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    sweep(board, 3, 5, 4)
    finish(board, board.job(board.comparison.arm("rl"), 0), flops=300.0, steps=100)
    with pytest.raises(UserError, match=r"'sft\+rl' has no step left"):
        board.keys(board.job(board.comparison.arm("sft+rl"), 0))


def test_a_model_that_went_missing_is_trained_again(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    sweep(board, 3, 5, 4)
    sft = board.final(board.comparison.arm("sft"), 0)
    finish(board, board.job(board.comparison.arm("rl"), 0), flops=1000.0)
    (sft.folder / "model").rmdir()
    assert "sft learning_rate=0.2, seed 0" in names(board)
    assert "sft+rl, seed 0" not in names(board)
    for job in board.sweep(board.comparison.arm("sft")):
        if job.value != 0.2:  # nothing starts from those
            (job.folder / "model").rmdir()
            assert board.done(job)
    # Nobody needs the model once the run that starts from it is done.
    finish(board, board.job(board.comparison.arm("sft+rl"), 0))
    assert board.done(sft)


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    finish(board, board.base)
    board.check()
    other = make_board(tmp_path, {**ARMS, "samples": 9})
    with pytest.raises(UserError, match="another 'samples'"):
        other.check()
    (tmp_path / "train.jsonl").write_text('{"prompt": "other"}\n')
    changed = Board(board.comparison, board.recipe, board.resolved, {}, board.folder)
    with pytest.raises(UserError, match="another 'recipe'"):
        changed.check()


def test_records_of_other_rows_are_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    finish(board, board.base)
    board.check()
    path = board.base.folder / DONE
    record = json.loads(path.read_text())
    record["inputs"]["held-out"]["sha256"] = "of another file"
    path.write_text(json.dumps(record))
    board.records.clear()
    with pytest.raises(UserError, match="evaluated on other rows"):
        board.check()


def test_where_the_recipe_lies_decides_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    specs = [
        board.spec(board.base) for board in (make_board(first, ARMS), make_board(second, ARMS))
    ]
    assert specs[0] == specs[1]
    assert str(tmp_path) not in json.dumps(specs)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    board = make_board(tmp_path, ARMS)
    board.base.folder.mkdir(parents=True)
    (board.base.folder / DONE).write_text('{"spec": {')
    with pytest.raises(UserError, match=r"done\.json' is damaged"):
        board.check()
