"""What a run leaves behind: resolved recipe, environment, git state, metrics."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

PACKAGES = ("prefix-rft", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm")


def free_run_folder(runs: Path, name: str) -> Path:
    """``runs/name``, or ``runs/name-2`` and so on: an older run is never written over.

    The folder is not made here; an empty one counts as free.
    """
    folder, number = runs / name, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = runs / f"{name}-{number}"
    return folder


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


def write_start(folder: Path, recipe: dict[str, Any]) -> None:
    """Make the folder; write ``recipe.yaml`` (resolved) and ``environment.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    write_json(folder / "environment.json", {**describe_machine(), "git": git_state()})


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")


def cut_metrics(folder: Path, step: int) -> None:
    """Take the lines behind ``step`` out of ``metrics.jsonl``: a resumed run writes them anew."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def append_metrics(folder: Path, step: int, metrics: dict[str, Any]) -> None:
    """Add one line to ``metrics.jsonl``; a number that is not finite is written as null."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    clean = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **clean}) + "\n")
