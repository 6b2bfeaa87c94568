"""What a run leaves behind: resolved recipe, environment, git state, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import naming, write_json, write_text

LOCK = ".lock"


def free_run_folder(runs: Path, name: str) -> Path:
    """``runs/name``, or ``runs/name-2`` and so on: an older run is never written over.

    The folder is not made here; an empty one counts as free, as does one in which a run could not
    even begin.
    """
    folder, number = runs / name, 1
    while taken(folder):
        number += 1
        folder = runs / f"{name}-{number}"
    return folder


def taken(folder: Path) -> bool:
    """Whether anyone has written into a folder, or something else stands in its place.

    Folders without a file in them do not count.
    """
    if not folder.is_dir():
        return folder.exists()
    return any(p.name != LOCK and not p.is_dir() for p in folder.rglob("*"))


def begun(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return (folder / "recipe.yaml").is_file()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process while it is in the context.

    Raises:
        UserError: another process has it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"run folder '{folder}' is in use by another process") from None
    try:
        yield
    finally:
        lock.release()


def write_start(
    folder: Path, recipe: dict[str, Any], resumed: dict[str, Any] | None = None
) -> None:
    """Make the folder; write ``recipe.yaml`` (resolved) and ``environment.json``.

    Args:
        folder: the run's folder.
        recipe: resolved.
        resumed: for a run that goes on, what there is to say about it; it is added to the list
            ``resumed`` of the environment in which the run began.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / "environment.json"
    here = {**describe_machine(), "git": git_state()}
    if resumed is not None and path.is_file():
        first = read_environment(folder)
        here = {**first, "resumed": [*first.get("resumed", []), {**resumed, **here}]}
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    write_json(path, here)


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run's ``environment.json`` holds.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "environment.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from error
