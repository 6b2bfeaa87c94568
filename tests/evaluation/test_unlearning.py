"""Sets to forget and to retain: UA and RA, and no prompt in both."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from prefix_rft.cli import main
from prefix_rft.evaluation.table import unlearning
from prefix_rft.support.errors import UserError
from prefix_rft.training.train import train
from tiny import make_model, make_rows, make_tokenizer

CODE = """
def told(completions, right, **kwargs):
    return [float(r) for r in right]
"""
RECIPE = """
model: base
train_data: retain.jsonl
method: sft
max_steps: 1
prompts_per_step: 2
max_completion_length: 24
save_strategy: no
parameter_mask: {kind: retain, data: retain.jsonl, forget: forget.jsonl, action: zero, count: 9}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained("base")
    tokenizer.save_pretrained("base")
    rows = make_rows(10)
    forget = rows.select(range(5)).add_column("right", [1, 0, 0, 0, 0])  # pyright: ignore
    retain = rows.select(range(5, 9)).add_column("right", [1, 1, 0, 1])  # pyright: ignore
    forget.to_json("forget.jsonl")
    retain.to_json("retain.jsonl")
    Path("told.py").write_text(CODE)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


EVAL = ["eval", "base", "--reward", "told:told", "--max-completion-length", "4"]
EVAL += ["--temperature", "0", "1", "--samples", "2"]
SETS = ["--data", "forget.jsonl", "--data", "retain.jsonl"]


def test_ua_and_ra(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of five is right: UA is 80; three of four: RA is 75."""
    assert main([*EVAL, *SETS]) == 0
    out = capsys.readouterr().out
    assert "UA (100 - forget)" in out
    assert "RA (retain)" in out
    lines = [line for line in out.splitlines() if "80.0 " in line and "75.0 " in line]
    assert len(lines) == 2
    results = json.loads((here / "evals/base/result.json").read_text())["results"]
    assert unlearning(results) == [
        {"model": "model", "temperature": t, "UA": 80.0, "RA": 75.0} for t in (0.0, 1.0)
    ]
    assert main([*EVAL, "--data", "forget.jsonl", "--output", "one"]) == 0
    assert "UA" not in capsys.readouterr().out


def test_numbers_by_hand() -> None:
    rows = [
        {"set": name, "model": model, "temperature": 0.0, "pass_at": {1: {"mean": share}}}
        for model, shares in {"base": (0.9, 0.8), "model": (0.25, 0.75)}.items()
        for name, share in zip(("forget", "retain"), shares, strict=True)
    ]
    rows += [{"set": "other", "model": "base", "temperature": 0.0, "pass_at": {1: {"mean": 0.1}}}]
    found = unlearning(rows)
    assert [(r["model"], r["UA"], r["RA"]) for r in found] == [
        ("base", pytest.approx(10), 80),
        ("model", 75, 75),
    ]
    rows[0]["pass_at"] = {}
    assert unlearning(rows)[0]["UA"] is None


def share_a_row(here: Path) -> None:
    first = Path("forget.jsonl").read_text().splitlines()[0]
    with Path("retain.jsonl").open("a") as file:
        file.write(f"{first}\n")


def test_sets_that_overlap_are_not_evaluated(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share_a_row(here)
    assert main([*EVAL, *SETS]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "sets forget and retain: 1 of 5 rows to forget are rows to retain, too, such as" in said
    assert "take them out of one of the two" in said
    assert not (here / "evals/base").exists()
    assert main([*EVAL, "--data", "gone=forget.jsonl", "--data", "retain.jsonl"]) == 0


def test_sets_that_overlap_are_not_trained_on(here: Path) -> None:
    train("recipe.yaml", ["name=fine"], Console(quiet=True))
    share_a_row(here)
    with pytest.raises(UserError, match="forget and data: 1 of 5 rows to forget are") as caught:
        train("recipe.yaml", [], Console(quiet=True))
    assert len(str(caught.value).splitlines()) == 1
    train("recipe.yaml", ["name=other", "parameter_mask.forget=null"], Console(quiet=True))
    with pytest.raises(UserError, match=r"nope\.jsonl"):
        train("recipe.yaml", ["parameter_mask.forget=nope.jsonl"], Console(quiet=True))
    with pytest.raises(UserError, match="forget has no effect with kind speft"):
        train("recipe.yaml", ["parameter_mask={kind: speft, forget: x}"], Console(quiet=True))
