"""Checkpoints on disk: which there are, and whether one is whole.

A checkpoint is written beside its place, in ``RUN/.writing``, listed in a manifest with the size
and the hash of each file, and renamed. So ``RUN/checkpoint-N`` either does not exist or was whole
when it came to be; what a disk did to it since, the manifest tells.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import sync, write_text

MANIFEST = "manifest.json"
WRITING = ".writing"
PREFIX = "checkpoint-"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a run folder by their step, in its order; whole or not."""
    folders = [p for p in folder.glob(f"{PREFIX}*") if re.fullmatch(r"\d+", p.name[len(PREFIX) :])]
    return {step_of(p): p for p in sorted(folders, key=step_of)}


def step_of(checkpoint: Path) -> int:
    """The optimizer steps before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def files_of(folder: Path) -> list[Path]:
    """All files of a checkpoint but the manifest, in a fixed order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def seal(folder: Path, listed: bool = True) -> None:
    """Look whether the files of a new folder are whole, and have the disk keep them.

    Args:
        folder: the folder of a checkpoint or a model.
        listed: write the manifest, too.

    Raises:
        UserError: a file breaks off.
        OSError: the operating system refuses to write.
    """
    manifest = {}
    for path in files_of(folder):
        if why := broken(path):
            raise UserError(f"'{path}' was not written whole: {why}")
        sync(path)
        if listed:
            name = path.relative_to(folder).as_posix()
            manifest[name] = {"size": path.stat().st_size, "sha256": hash_of(path)}
    if listed:
        write_text(folder / MANIFEST, json.dumps({"files": manifest}, indent=2) + "\n")
    for inner in [p for p in folder.rglob("*") if p.is_dir()]:
        sync(inner)
    sync(folder)


def broken(path: Path) -> str | None:
    """Why the file cannot be whole, as far as its format tells; None if it can."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        elif path.suffix in (".pt", ".pth", ".bin", ".distcp"):
            if not zipfile.is_zipfile(path):
                return "its end is missing"
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        return str(error)
    return None


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint: the first file that its manifest does not match.

    Every file is read. None where the checkpoint is whole.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed: dict[str, Any] = dict(manifest["files"])
        for name, entry in listed.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != entry["size"]:
                return f"{name} has {size} bytes, not {entry['size']}"
            if hash_of(path) != entry["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole; None where there is none.

    Args:
        folder: the run's folder.
        say: hears of each damaged checkpoint that is passed over.
    """
    for path in reversed(checkpoints(folder).values()):
        why = fault(path)
        if why is None:
            return path
        say(f"passed over the damaged checkpoint '{path}': {why}")
    return None


def place(new: Path, final: Path) -> None:
    """Rename a sealed checkpoint to where it belongs; one that is there already is replaced."""
    if final.exists():
        aside = new.with_name("replaced")
        final.rename(aside)
        new.rename(final)
        shutil.rmtree(aside)
    else:
        new.rename(final)
    sync(final.parent)


def rotate(folder: Path, keep: int | None, best: str | None, newest: int) -> None:
    """Delete the oldest checkpoints of a run, but not the last ``keep`` nor the best.

    Args:
        folder: the run's folder.
        keep: the number of checkpoints to keep; None or 0 is all.
        best: path of the best one.
        newest: the step of the one that was written last; those of later steps are of older runs.
    """
    if not keep or keep < 0:
        return
    protected = {Path(best).resolve()} if best else set()
    by_age = sorted(checkpoints(folder).items(), key=lambda x: (x[0] <= newest, x[0]))
    for _, path in by_age[:-keep]:
        if path.resolve() not in protected:
            shutil.rmtree(path)


def go_back(folder: Path, step: int) -> None:
    """Take the checkpoints of later steps away; damaged ones are set aside as ``damaged-N``."""
    for later, path in checkpoints(folder).items():
        if later <= step:
            continue
        if fault(path) is None:
            shutil.rmtree(path)
            continue
        aside = folder / f"damaged-{later}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
