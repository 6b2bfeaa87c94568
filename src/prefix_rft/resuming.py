"""Where a run goes on: what ``prefix-rft train RECIPE --resume`` finds on disk."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.checkpoints import WRITING, checkpoints, newest_whole, step_of
from prefix_rft.engines.trl.resume import cut_rollouts
from prefix_rft.errors import UserError
from prefix_rft.run_folder import cut_metrics
from prefix_rft.run_reader import RunFolder, flatten

PLACES = ("runs", "name", "trainer.output_dir", "trainer.run_name", "trainer.logging_dir")
FREE = ("trainer.resume_from_checkpoint", "trainer.save_", "trainer.report_to", "trainer.logging_")
"""Settings that change nothing of what is trained."""


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
        stage: index of the stage.
        model: that the stage starts from, if not the recipe's.
        folder: of a run to go on with; None for a new one.
        checkpoint: in that folder; None to begin the run again.
        finished: nothing is left to do.
    """

    stage: int = 0
    model: str | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    finished: bool = False


def from_checkpoint(checkpoint: Path, names: Sequence[str]) -> Start:
    """Go on from a checkpoint that was named.

    Raises:
        UserError: it belongs to none of the stages.
    """
    folder = checkpoint.resolve().parent
    for stage, name in enumerate(names):
        if len(names) == 1 or re.fullmatch(rf"{re.escape(name)}(-\d+)?", folder.name):
            model = None if stage == 0 else str(RunFolder(folder).recipe()["model"])
            return Start(stage, model, folder, checkpoint)
    raise UserError(
        f"resume_from_checkpoint '{checkpoint}' is of none of the stages {', '.join(names)}"
    )


def find(runs: Path, names: Sequence[str], say: Callable[[str], None]) -> Start:
    """Go on with the newest run of these names, from its newest whole checkpoint.

    Args:
        runs: where run folders are.
        names: of the runs of the recipe's stages.
        say: hears what was found.
    """
    for stage, name in reversed(list(enumerate(names))):
        folder = newest_run(runs, name)
        if folder is None:
            continue
        before = newest_run(runs, names[stage - 1]) if stage else None
        if before is not None and RunFolder(folder).recipe()["model"] != _model_of(before):
            continue  # of an older pass through the stages
        if finished(folder):
            if stage == len(names) - 1:
                say(f"the run '{folder}' is finished; without --resume a new one begins")
                return Start(stage, folder=folder, finished=True)
            return Start(stage + 1, _model_of(folder))
        run = RunFolder(folder)
        model = None if stage == 0 else str(run.recipe()["model"])
        checkpoint = newest_whole(folder, say)
        if checkpoint is not None:
            say(f"going on with '{folder}' from step {step_of(checkpoint)}")
        else:
            say(f"the run '{folder}' has no checkpoint to go on from: it begins again")
        return Start(stage, model, folder, checkpoint)
    say(f"no run of the name '{names[0]}' in '{runs}' to go on with: a new one begins")
    return Start()


def newest_run(runs: Path, name: str) -> Path | None:
    """The run folder ``name``, or ``name-N`` with the highest number."""
    found = {}
    for path in runs.iterdir() if runs.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", path.name)
        if match and (path / "recipe.yaml").is_file():
            found[int(match[1] or 1)] = path
    return found[max(found)] if found else None


def _model_of(folder: Path) -> str:
    return str((folder / "model").resolve())


def finished(folder: Path) -> bool:
    """Whether a run has left all it should: the model, and its evaluation if one was asked for."""
    if not (folder / "model").is_dir():
        return False
    run = RunFolder(folder)
    recipe = run.recipe()
    return not (recipe.get("eval_data") and recipe.get("reward")) or "trained" in run.evaluations()


def clear(start: Start) -> None:
    """Take away what a run has written behind the point from which it goes on."""
    if start.folder is None:
        return
    step = 0 if start.checkpoint is None else step_of(start.checkpoint)
    cut_metrics(start.folder, step)
    cut_rollouts(start.folder / "rollouts", step)
    for later in [p for k, p in checkpoints(start.folder).items() if k > step]:
        shutil.rmtree(later)
    shutil.rmtree(start.folder / WRITING, ignore_errors=True)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """The settings in which a resolved recipe differs from one before, each with both values."""
    old, new = flatten(before), flatten(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in PLACES and not key.startswith(FREE)
    }


def go_on_with(recipe: str, overrides: Sequence[str]) -> str:
    """The command that goes on with a run."""
    given = [x for x in overrides if not x.startswith("resume_from_checkpoint=")]
    return shlex.join(["prefix-rft", "train", recipe, *given, "--resume"])
