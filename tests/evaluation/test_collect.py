"""A model's own right answers as demonstrations."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.cli import main
from prefix_rft.data import load_rows
from prefix_rft.evaluation.collect import right_ones
from prefix_rft.evaluation.samples import Sample
from prefix_rft.rewards import Verdict
from prefix_rft.tasks.countdown import grade, write

ROWS, SAMPLES = 12, 6


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, ROWS, 4, 0, n_valid=2)
    return folder


def collect(task: Path, output: Path, *more: str, samples: int = SAMPLES) -> int:
    command = ["collect", str(task / "recipe.yaml"), "--output", str(output)]
    return main([*command, "--samples", str(samples), *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def solved(folder: Path) -> dict[int, list[str]]:
    """The right answers to each row, by the samples that were stored."""
    found: dict[int, list[str]] = {}
    for i, problem in enumerate(lines(folder / "samples/model/train-T1.jsonl")):
        texts = [s["text"] for s in problem["samples"] if s["verdict"]["status"] == "correct"]
        if texts:
            found[i] = list(dict.fromkeys(texts))
    return found


def test_own_answers(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "own.jsonl"
    assert collect(task, output) == 0
    said, right = capsys.readouterr().out, solved(tmp_path / "own")
    assert 0 < len(right) < ROWS
    assert f"{len(right)} own answers to {len(right)} of {ROWS} rows" in " ".join(said.split())
    given, found = lines(task / "train.jsonl"), lines(output)
    assert [row["prompt"] for row in found] == [given[i]["prompt"] for i in right]
    for row, texts in zip(found, right.values(), strict=True):
        assert row["demonstration"] == texts[:1]
        assert all(grade(t, row["numbers"], row["target"]) for t in row["demonstration"])
    # They are read like anyone's rows.
    assert load_rows(str(output))["demonstration"] == [row["demonstration"] for row in found]
    small = ("prompts_per_step=2", "micro_batch_size=16")
    assert main(["check", str(task / "recipe.yaml"), f"train_data={output}", *small]) == 0


def test_the_first_rows(task: Path, tmp_path: Path) -> None:
    output = tmp_path / "own.jsonl"
    assert collect(task, output, "--limit", "8") == 0
    right = solved(tmp_path / "own")
    assert max(right) < 8
    assert [row["demonstration"] for row in lines(output)] == [t[:1] for t in right.values()]


def test_which_answers_are_kept() -> None:
    right, wrong = Verdict("correct", 1.0), Verdict("wrong", 0.0)
    samples = [
        Sample("a", 3, False, wrong),
        Sample("b", 3, True, right),  # cut: it would not end
        Sample("c", 3, False, right),
        Sample("c", 3, False, right),
        Sample("d", 3, False, right),
        Sample("e", 3, False, right),
    ]
    assert [right_ones(samples, n) for n in (1, 2, 9)] == [["c"], ["c", "d"], ["c", "d", "e"]]
    assert right_ones(samples[:2], 1) == []


def test_it_goes_on_where_it_was_interrupted(task: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "own.jsonl"
    assert collect(task, whole) == 0
    assert collect(task, output) == 0
    samples = tmp_path / "own/samples/model/train-T1.jsonl"
    output.unlink()
    samples.with_suffix(".done").unlink()
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:5])[:-9])
    assert collect(task, output) == 0
    assert output.read_text() == whole.read_text()


def test_refusals(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert collect(task, *arguments) == 2  # type: ignore[arg-type]
        return " ".join(capsys.readouterr().err.split())

    there = tmp_path / "there.jsonl"
    there.touch()
    assert "exists already" in refused(there)  # type: ignore[arg-type]
    own = tmp_path / "own.jsonl"
    assert "must end in .jsonl" in refused(tmp_path / "own.json")  # type: ignore[arg-type]
    assert "does not exist" in refused(tmp_path / "no/own.jsonl")  # type: ignore[arg-type]
    assert "--keep must be at least 1" in refused(own, "--keep", "0")  # type: ignore[arg-type]
    assert "--temperature must be above 0" in refused(own, "--temperature", "0")  # type: ignore[arg-type]
    assert "none of 2 rows was solved in 6 samples" in refused(  # type: ignore[arg-type]
        own, "--limit", "2", "max_completion_length=1"
    )
    assert not own.exists()
