"""Where a grader says nothing, its cell says so and the rest of the table stands."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefix_rft.evaluation import run as eval_run
from prefix_rft.evaluation.run import EvalPlan, run_eval, samples_file
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.evaluation.table import few_of, show_eval
from prefix_rft.support.errors import UserError
from tiny import make_model, make_rows, make_tokenizer

SUBJECTS = ["number"] * 3 + ["algebra"] * 2


def text_of(result: dict[str, Any]) -> str:
    out = StringIO()
    show_eval(Console(file=out, width=200), result)
    return out.getvalue()


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    for name, seed in (("old", 0), ("new", 1)):
        make_model(tokenizer, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def write(task: Path, golds: list[str]) -> EvalSet:
    rows = make_rows(len(golds)).to_list()
    lines_ = [
        {"prompt": r["prompt"], "answer": g, "subject": s}
        for r, g, s in zip(rows, golds, SUBJECTS, strict=True)
    ]
    (task / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines_))
    return EvalSet("a", "a.jsonl", "exact", folder=task)


def plan(task: Path, one: EvalSet, base: bool = False) -> EvalPlan:
    models = {"base": str(task / "old")} if base else {}
    request = Request(samples=2, max_completion_length=4, batch_size=16)
    return EvalPlan(
        {**models, "model": str(task / "new")}, [one], (1.0, 0.0), request, ("subject",)
    )


UNREADABLE = " "


def test_a_part_without_a_readable_gold_is_ungraded(task: Path) -> None:
    one = write(task, ["1", "2", "3", UNREADABLE, UNREADABLE])
    result = run_eval(plan(task, one, base=True), task / "out", lambda *_: None)
    for row in result["results"]:
        assert (row["total"], row["problems"]) == (5, 3)
        assert row["by"]["subject"]["algebra"]["avg"] is None
        assert row["by"]["subject"]["algebra"]["total"] == 2
        assert row["by"]["subject"]["number"]["avg"]["n"] == 3
    json.loads((task / "out/result.json").read_text(), parse_constant=pytest.fail)  # no NaN
    shown = text_of(result)
    assert "a: 5 problems" in shown
    assert "(n = 3)" in shown
    assert "ungraded" in shown


def test_nothing_is_sampled_where_no_gold_can_be_read(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(task, [UNREADABLE] * 5)
    monkeypatch.setattr(eval_run, "_load", lambda source: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="set 'a': 'exact' can read no gold answer of its 5 prob"):
        run_eval(plan(task, one), task / "out", lambda *_: None)
    assert not (task / "out").exists()


def test_a_grader_that_fails_at_everything_leaves_a_result(task: Path) -> None:
    one = write(task, ["1"] * 5)
    run_eval(plan(task, one, base=True), task / "out", lambda *_: None)
    for role in ("base", "model"):
        for temperature in (1.0, 0.0):
            path = samples_file(task / "out", role, one, temperature)
            found = [json.loads(x) for x in path.read_text().splitlines()]
            for line in found:
                for sample in line["samples"]:
                    sample["verdict"] = {"status": "timeout"}
            path.write_text("".join(json.dumps(x) + "\n" for x in found))
    result = run_eval(plan(task, one, base=True), task / "out", lambda *_: None)
    assert result["differences"] == []
    assert [r["avg"] for r in result["results"]] == [None] * 4
    assert "ungraded" in text_of(result)


def test_pass_at_k_says_over_how_many_problems(task: Path) -> None:
    one = write(task, ["1", "2", "3", "4", "5"])
    run_eval(plan(task, one), task / "out", lambda *_: None)
    path = samples_file(task / "out", "model", one, 1.0)
    found = [json.loads(x) for x in path.read_text().splitlines()]
    found[0]["samples"][1]["verdict"] = {"status": "timeout"}
    path.write_text("".join(json.dumps(x) + "\n" for x in found))
    result = run_eval(plan(task, one), task / "out", lambda *_: None)
    row = result["results"][0]
    assert (row["avg"]["n"], row["pass_at"][2]["n"]) == (5, 4)
    first = text_of(result).partition("(n = 4)")[0]
    assert "a: 5 problems" in first
    assert "[" in first  # the mean over all five stands before it, without a number
    assert (few_of(4, 5), few_of(5, 5), few_of(5, None)) == ("(n = 4)", "", "")
