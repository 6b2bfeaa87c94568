"""The folder of an evaluation: whose it is, and which of its jobs are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefix_rft.data.moment import now
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import naming, write_json

DATE = "chat_template_date"


def open_folder(folder: Path, settings: Mapping[str, Any]) -> str:
    """Make the folder, or see that it belongs to an evaluation with these settings.

    Returns:
        The moment at which the evaluation began, which chat templates tell that ask for the date.

    Raises:
        UserError: it does not.
    """
    path = folder / "settings.json"
    plain = json.loads(json.dumps(settings, default=str))
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"'{path}' is damaged: give another --output") from error
        other = [k for k in plain if record.get(k) != plain[k]]
        date = record.get(DATE)
        if other:
            raise UserError(
                f"'{folder}' holds an evaluation with another '{other[0]}': give another --output"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' holds no evaluation: give another --output")
    else:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        date = now()
        write_json(path, {**plain, DATE: date})
    return now() if date is None else str(date)


def begun(folder: Path) -> Any:
    """The moment at which the evaluation of a folder began; None where it does not say so."""
    return json.loads((folder / "settings.json").read_text(encoding="utf-8")).get(DATE)


def samples_file(folder: Path, role: str, eval_set: EvalSet, temperature: float) -> Path:
    """Where the samples of one job are."""
    return folder / "samples" / role / f"{eval_set.name}-T{temperature:g}.jsonl"


def done_file(folder: Path, role: str, eval_set: EvalSet, temperature: float) -> Path:
    """The file that is there once all samples of a job are."""
    return samples_file(folder, role, eval_set, temperature).with_suffix(".done")


def is_done(folder: Path, role: str, eval_set: EvalSet, temperature: float) -> bool:
    """Whether all samples of a job are there."""
    return done_file(folder, role, eval_set, temperature).is_file()


def rendering_file(folder: Path, role: str, eval_set: EvalSet) -> Path:
    """Where it is noted how prompts of a set reach a model."""
    return folder / "samples" / role / f"{eval_set.name}-prompt.json"


def note(path: Path, facts: Mapping[str, Any]) -> None:
    """Write what decides samples or grades, or see that it is what it was when they were begun.

    Raises:
        UserError: it is not.
    """
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"'{path}' is damaged: give another --output") from error
        other = next((k for k in facts if record.get(k) != facts[k]), None)
        if other is not None:
            raise UserError(
                f"'{path}' is of another evaluation, with another '{other}': give another --output"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
