"""What a run leaves behind: resolved recipe, environment, git state, metrics."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from prefix_rft.errors import UserError
from prefix_rft.writing import append_text, naming, write_text

LOCK = ".lock"
SUMMARY = "train_runtime"
"""Only the last line of a run's metrics has this key."""

PACKAGES = ("prefix-rft", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm")


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


def describe_machine() -> dict[str, Any]:
    """Versions, processor and device, without names that identify a person or a host."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": device,
        "packages": versions,
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None outside a repository."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603
                ["git", *args],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def write_start(
    folder: Path, recipe: dict[str, Any], resumed: dict[str, Any] | None = None
) -> None:
    """Make the folder; write ``recipe.yaml`` (resolved) and ``environment.json``.

    Args:
        folder: of the run.
        recipe: resolved.
        resumed: of a run that goes on, what there is to say about it; it is added to the list
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


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def cut_metrics(folder: Path, step: int, look: bool = False) -> None:
    """Take out of ``metrics.jsonl`` what a run that goes on from ``step`` writes anew.

    These are the lines behind that step, and the summary of the part that ended there.

    Args:
        folder: of the run.
        step: from which it goes on.
        look: only read.

    Raises:
        UserError: a line is damaged.
    """
    path = folder / "metrics.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
        try:
            kept = [x for x in whole if (y := json.loads(x))["step"] <= step and SUMMARY not in y]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
        if not look:
            write_text(path, "".join(kept))


def append_metrics(folder: Path, step: int, metrics: dict[str, Any]) -> None:
    """Add one line to ``metrics.jsonl``; a number that is not finite is written as null."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    clean = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    append_text(folder / "metrics.jsonl", json.dumps({"step": step, **clean}) + "\n")
