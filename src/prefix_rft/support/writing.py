"""Write files so that a reader finds the old one or the new one, never a part of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError

PART = ".part"
"""Ending of a file that is being written; one that was left behind by a crash is of no use."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system inside this context name the file.

    Raises:
        UserError: the disk is full, the file may not be written, ...
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"'{path}' cannot be written: {why}") from error


def check_folder(folder: Path, what: str) -> None:
    """Look whether a folder can be made and written, before there is anything to write.

    Args:
        folder: a folder that need not be there yet.
        what: it is, for the message.

    Raises:
        UserError: it cannot; the message names what is in the way.
    """
    path = folder.absolute()
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"{what} '{folder}' cannot be made: '{there}' is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{what} '{folder}' cannot be written: no right to write in '{there}'")


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file as a whole.

    Raises:
        UserError: it cannot be written; an older version of it is then as it was.
    """
    part = path.with_name(path.name + PART)
    with naming(path):
        try:
            with part.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a text file. A crash may leave a part of the last one, without its end.

    Raises:
        UserError: they cannot be written.
    """
    with naming(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have the disk keep a file or a folder's list of names before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")
