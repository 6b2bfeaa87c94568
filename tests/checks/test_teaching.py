"""``prefix-rft check``: which rows a teacher does not teach, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.cli import main
from prefix_rft.tasks.countdown import write

Capture = pytest.CaptureFixture[str]
SEEN = ("--limit", "12", "prompts_per_step=2", "micro_batch_size=16")

LONG = (2, 4, 5, 9, 12)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Twelve rows; the third one has no demonstration, the fifth one a hint, some are longer."""
    write(tmp_path, 12, 4, 0, 4)
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[2]["demonstration"] = None
    for number in LONG:
        rows[number - 1]["prompt"] = "; " * 8 + rows[number - 1]["prompt"]
    for i, row in enumerate(rows):
        row["hint"] = "9 - 1" if i == 4 else None
        row["kind"] = "ab"[i % 2]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return rows


def check(capfd: Capture, *more: str) -> tuple[int, str]:
    code = main(["check", "recipes/rlsd.yaml", *SEEN, "eval_data=null", *more])
    return code, " ".join(capfd.readouterr().out.split())


def words(row: dict[str, Any]) -> int:
    """Tokens of a teacher's prompt, ``{context} ; {prompt}``: every word is one."""
    return len(f"{row['demonstration']} ; {row['prompt']}".split())


def test_a_row_without_a_demonstration(rows: Any, capfd: Capture) -> None:
    code, said = check(capfd)
    assert code == 0
    assert (
        "teacher 'teacher' (demonstration, snapshot): 11 of 12 rows taught; 1 not: it has no "
        "usable demonstration"
    ) in said
    assert "row 3: teacher 'teacher' does not teach the row: it has no usable demonst" in said


def test_a_prompt_that_does_not_fit(rows: Any, capfd: Capture) -> None:
    limit = 19  # of 11 + 1 + 7 words at most, or of 8 more
    assert [i for i, r in enumerate(rows, 1) if words(r) > limit] == list(LONG)
    _, said = check(capfd, f"method.teacher.max_length={limit}")
    assert "6 of 12 rows taught" in said
    assert "5 not: its prompt is too long" in said
    assert "rows 2, 4, 5, 9, 12: teacher 'teacher' does not teach the row: its prompt is" in said
    assert f"is too long for the {limit} tokens that there is room for" in said
    cut = ("method.teacher.too_long=cut", f"method.teacher.max_length={limit}")
    assert "11 of 12 rows taught; 1 not: it has no" in check(capfd, *cut)[1]


def test_the_model_s_own_room(rows: Any, capfd: Capture) -> None:
    """What the completion leaves of its positions."""
    config = json.loads(Path("base/config.json").read_text())
    room = max(words(r) for r in rows if r["demonstration"]) - 1
    Path("base/config.json").write_text(
        json.dumps({**config, "max_position_embeddings": room + 12})
    )
    assert "not: its prompt is too long" in check(capfd)[1]
    config["max_position_embeddings"] = room + 13
    Path("base/config.json").write_text(json.dumps(config))
    assert "too long" not in check(capfd)[1]


@pytest.mark.parametrize(
    ("options", "counted", "code"),
    [
        ("{context: column, column: hint}", "1 of 12 rows taught; 11 not: it has nothing in column "
         "'hint'", 0),
        ("{context: column, column: nowhere}", "teaches none of the 12 rows", 1),
        ("{context: demonstration, column: null, only: {kind: a}}", "5 of 12 rows taught; 6 not: "
         "it is another teacher's; 1 not: it has no usable demonstration", 0),
        ("{context: peer, column: null}", "whom it teaches is known once their groups are", 0),
        ("{context: none, column: null}", "12 of 12 rows taught", 0),
    ],
)  # fmt: skip
def test_why(rows: Any, capfd: Capture, options: str, counted: str, code: int) -> None:
    found, said = check(capfd, f"method={{name: rlsd, teacher: {options}}}")
    assert counted in said
    assert found == code
    assert "does not teach the row: it is another" not in said
    assert ("no teacher is for the row" in said) == ("only" in options)


def test_another_example_is_looked_for_in_other_rows(rows: Any, capfd: Capture) -> None:
    """Also for the last row of a file, which stands alone in its batch."""
    assert "12 of 12 rows taught" in check(capfd, "method.control=unrelated")[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefix_rft.checks.rows.BATCH", 11)
        assert "12 of 12 rows taught" in check(capfd, "method.control=unrelated")[1]
    assert "0 of 1 rows taught; 1 not: no other row has a usable demonstration" in check(
        capfd, "method.control=unrelated", "--limit", "1"
    )[1]  # fmt: skip


def test_a_method_without_a_teacher_says_nothing(rows: Any, capfd: Capture) -> None:
    assert "teach" not in check(capfd, "method=grpo")[1]
