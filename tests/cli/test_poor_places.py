"""A terminal of few characters, and folders that cannot be written: a sentence, no traceback."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from prefix_rft.cli import main
from prefix_rft.data import rows as rows_module
from prefix_rft.runs.folder import free_run_folder
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder
from tiny import make_model, make_rows, make_tokenizer

WORDS = "Größe → 数 “x” 🙂 "
REWARDS = """
def good(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lines = [
        {**row, "prompt": WORDS + row["prompt"], "demonstration": row["demonstration"] + WORDS}
        for row in make_rows(8).to_list()
    ]
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
    (tmp_path / "größe.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "recipe.yaml").write_text(
        "model: base\ntrain_data: größe.jsonl\neval_data: größe.jsonl\nreward: my_rewards:good\n"
        "name: tiny\nprompts_per_step: 2\nmax_completion_length: 48\nmax_steps: 1\n"
        "eval_samples: 1\n",
        encoding="utf-8",
    )
    (tmp_path / "barrier").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


class Ascii:
    """A terminal that knows ASCII alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = io.BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(
                sys, name, io.TextIOWrapper(self.bytes, "ascii", write_through=True)
            )

    def shown(self) -> str:
        return self.bytes.getvalue().decode("ascii")


@pytest.mark.slow
def test_every_command_writes_to_a_terminal_of_ascii(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Ascii(monkeypatch)
    for command in (
        ["methods"],
        ["methods", "prefix_rft"],
        ["check", "recipe.yaml"],
        ["inspect", "recipe.yaml"],
        ["train", "recipe.yaml"],
        ["show", "runs/tiny"],
        ["report", "runs/tiny"],
        ["eval", "runs/tiny/model", "--recipe", "recipe.yaml", "--samples", "1"],
        ["task", "countdown", "täsk", "--train-rows", "2", "--valid-rows", "1", "--test-rows", "1"],
    ):
        assert main(command) in (0, 1), (command, terminal.shown())
    out = terminal.shown()
    assert "Traceback" not in out
    assert "?" in out
    assert (folder / "runs/tiny/report.html").is_file()
    assert main(["train", "größe.yaml"]) == 2
    assert "recipe 'gr??e.yaml' does not exist" in terminal.shown()


def test_a_comparison_writes_to_a_terminal_of_ascii(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Ascii(monkeypatch)
    assert main(["compare", "recipe.yaml", "--methods", "grpo", "--only-table"]) == 2
    assert "no run of 'comparisons/tiny' is done" in terminal.shown()


NOWHERE = {
    "runs that are a file": (
        ["train", "recipe.yaml", "runs=barrier"],
        "the run folder 'barrier/tiny' cannot be made: '",
    ),
    "runs below a file": (["check", "recipe.yaml", "runs=barrier/a/b"], "barrier' is no folder"),
    "results below a file": (
        ["eval", "base", "--recipe", "recipe.yaml", "--output", "barrier/x"],
        "or the folder it is in does not exist",
    ),
    "a comparison below a file": (
        ["compare", "recipe.yaml", "--output", "barrier/x"],
        "or the folder it is in does not exist",
    ),
    "a task below a file": (["task", "countdown", "barrier/x"], "barrier"),
    "a report below a file": (["report", "run", "--output", "barrier/x.html"], "error: "),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_what_cannot_be_written_is_one_sentence(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command, words = NOWHERE[case]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert words in error
    assert error.startswith("prefix-rft: error: ")
    assert len(error.splitlines()) == 1


def test_default_folders_that_are_files(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, command in (
        ("runs", ["train", "recipe.yaml"]),
        ("evals", ["eval", "base", "--recipe", "recipe.yaml"]),
        ("comparisons", ["compare", "recipe.yaml", "--methods", "grpo"]),
    ):
        (folder / name).write_text("")
        assert main(command) == 2
        assert f"{name}' is no folder" in capfd.readouterr().err
    (folder / "runs").unlink()
    (folder / "runs").mkdir()
    (folder / "runs/tiny").write_text("")
    assert free_run_folder(folder / "runs", "tiny").name == "tiny-2"


def test_a_folder_without_the_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_folder(tmp_path / "a/b", "the folder")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"the folder '.*a/b' cannot be written: no right to write"):
        check_folder(tmp_path / "a/b", "the folder")


@pytest.mark.parametrize("command", [["train", "recipe.yaml"], ["eval", "base"]])
@pytest.mark.parametrize("place", ["barrier/x", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written(
    command: list[str],
    place: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rows_module, "HF_DATASETS_CACHE", place)
    monkeypatch.setattr(rows_module, "_folder", None)
    more = [] if command[0] == "train" else ["--recipe", "recipe.yaml", "--samples", "1"]
    assert main([*command, *more]) == 2
    error = capfd.readouterr().err
    assert f"the cache of datasets '{place}' cannot be written: N" in error
    assert "HF_DATASETS_CACHE" in error
    assert len(error.splitlines()) == 1
