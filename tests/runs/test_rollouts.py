"""A rollout's line has one reader: what one page refuses, no other shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.cli import main
from prefix_rft.report import write_report
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import OLDER, Rollout
from prefix_rft.support.errors import UserError

LINE = {
    "step": 1,
    "example": 7,
    "group": 0,
    "row": 0,
    "prompt_ids": [0],
    "completion_ids": [0, 1, 2],
    "prefix_length": 1,
    "demonstration": False,
    "attempt": 0,
    "prompt": "a question",
    "text": "a b c",
    "reward": 0.5,
    "verdicts": {"math": {"status": "wrong", "reward": 0.0, "detail": ""}},
    "advantage": -0.25,
    "truncated": False,
    "hint_length": 0,
}

DAMAGED: list[tuple[str, Any]] = [
    ("example", "\x1b[2J"),
    ("group", None),
    ("images", "a"),
    ("images", [1]),
    ("group", []),
    ("row", "1"),
    ("row", -1),
    ("prompt_ids", "0"),
    ("prompt_ids", [-1]),
    ("completion_ids", None),
    ("completion_ids", [-1]),
    ("completion_ids", [2**32]),
    ("completion_ids", [0, "1"]),
    ("completion_ids", [0, 1.0]),
    ("prefix_length", -1),
    ("prefix_length", 1.5),
    ("prefix_length", "2"),
    ("demonstration", "no"),
    ("attempt", "1"),
    ("attempt", -1),
    ("prompt", ["q"]),
    ("text", 3),
    ("reward", "1"),
    ("reward", float("nan")),
    ("reward", 10**400),
    ("reward", 1e39),
    ("verdicts", ["correct"]),
    ("verdicts", {"math": "correct"}),
    ("verdicts", {"math": {}}),
    ("verdicts", {"math": {"status": 1}}),
    ("verdicts", {"math": {"status": "wrong", "detail": None}}),
    ("advantage", "1"),
    ("advantage", float("-inf")),
    ("truncated", 3),
    ("hint_length", -1),
]


def make_run(folder: Path, *lines: dict[str, Any]) -> str:
    (folder / "rollouts").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("trainer: {}\n")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "rollouts/step_000001.jsonl").write_text(text)
    return str(folder)


def reported(run: str) -> None:
    write_report([run])


def shown(run: str) -> None:
    assert main(["show", run]) == 0


def refusal(page: Callable[[str], None], run: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a page says of a run that it refuses."""
    if page is shown:
        assert main(["show", run]) == 2
        return capsys.readouterr().err
    with pytest.raises(UserError) as error:
        page(run)
    return str(error.value)


@pytest.mark.parametrize("page", [reported, shown])
@pytest.mark.parametrize(("field", "value"), DAMAGED)
def test_a_damaged_field_is_refused_by_every_page(
    page: Callable[[str], None],
    field: str,
    value: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever it stands: in a row that the page would not show, too."""
    lines = [{**LINE, "row": row} for row in range(20)]
    run = make_run(tmp_path / "r", *lines, {**LINE, "row": 20, field: value})
    said = refusal(page, run, capsys)
    assert "step_000001.jsonl', line 21 is damaged" in said
    assert f"its '{field}' is not what a run writes: " in said
    assert len(said.strip().splitlines()) == 1
    assert "\x1b" not in said


@pytest.mark.parametrize("page", [reported, shown])
@pytest.mark.parametrize("field", [k for k in LINE if k != "step"])
def test_only_what_older_versions_lack_may_be_missing(
    page: Callable[[str], None], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", {k: v for k, v in LINE.items() if k != field})
    if field in OLDER:
        page(run)
    else:
        assert f"line 1 is damaged: it lacks '{field}'" in refusal(page, run, capsys)


def test_a_rollout_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = {**LINE, "row": 1, "reward": None, "advantage": None, "prefix_length": 0}
    folder = Path(make_run(tmp_path / "r", LINE, other))
    (folder / "rollouts/kept_000001.jsonl").write_text(
        '{"step": 1, "group": 0, "row": 0, "kept": [0]}\n'
    )
    first, second = RunFolder(folder).rollouts(1)
    assert [first.line(), second.line()] == [LINE, other]
    assert list(first.line()) == list(LINE)
    assert (first.kept, second.kept) == ({0}, None)


def test_where_a_rollout_is_from() -> None:
    def origin(**changes: Any) -> str:
        return Rollout.read({**LINE, **changes}).origin

    assert origin() == "hybrid"
    assert origin(prefix_length=0) == "on-policy"
    assert origin(prefix_length=0, hint_length=2) == "hybrid"
    assert origin(demonstration=True) == "demonstration"
