"""Files are there as a whole or not at all, and an error names the file."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import append_text, write_text


def fails(number: int) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    monkeypatch.setattr(os, call, fails(number))
    with pytest.raises(UserError, match=rf"report\.html' cannot be written: {os.strerror(number)}"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_line_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    append_text(path, "one\n")
    append_text(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    with pytest.raises(UserError, match=r"metrics\.jsonl' cannot be written: No space left"):
        append_text(tmp_path / "metrics.jsonl", "three\n")


def test_a_file_is_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_text(tmp_path / "report.html", "page")
    assert (tmp_path / "report.html").stat().st_mode == (tmp_path / "other").stat().st_mode
