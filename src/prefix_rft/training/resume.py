"""Where a run goes on: what ``prefix-rft train RECIPE --resume`` finds on disk."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.engines.changes import (
    NOTHING,
    among,
)
from prefix_rft.engines.options import SHARED
from prefix_rft.recipe.along import ACTS
from prefix_rft.runs.best import BEST, CHOOSES, reopen, verify_best
from prefix_rft.runs.checkpoints import WRITING, checkpoints, go_back, newest_whole, step_of
from prefix_rft.runs.folder import read_environment
from prefix_rft.runs.metrics import cut_metrics
from prefix_rft.runs.reader import RunFolder, flatten, newest_run
from prefix_rft.runs.rollouts import cut_rollouts
from prefix_rft.support.errors import UserError

PLACES = ("runs", "name")
BEGINNING = ("model", "model_init_kwargs", "engine")
"""Keys of a recipe that are no settings of the trainer, and decide what a run begins with."""
MEASURED_ALIKE = (
    *("keep", "best_metric", "reward"),
    *("eval_data", "eval_problems", "eval_temperature", "eval_every_samples"),
)
"""Keys that decide how evaluations along the way compare."""
TWICE = ("trainer.method_options",)
"""Settings that stand elsewhere too: told once."""


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins.

    Attributes:
        stage: index of the stage.
        model: the model that the stage starts from, if not the recipe's.
        folder: the folder of a run to go on with; None for a new one.
        checkpoint: the checkpoint in that folder; None to begin the run again.
        finished: nothing is left to do.
        seen: steps of the checkpoints from which this one was chosen as the newest; None where it
            was named.
    """

    stage: int = 0
    model: str | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    finished: bool = False
    seen: tuple[int, ...] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that need not be done again."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)

    def settings(self) -> dict[str, Any]:
        """Keys of the recipe that are others here than in the recipe's file."""
        return {} if self.model is None else {"model": self.model}

    def date(self) -> str | None:
        """The moment that the chat template has told in the run that goes on, if it told one."""
        if self.folder is None or self.checkpoint is None:
            return None
        date = (RunFolder(self.folder).recipe().get("trainer") or {}).get("chat_template_date")
        return None if date is None else str(date)

    def verify_unchanged(self) -> None:
        """Look at the folder again, now that no other process can change it.

        Raises:
            UserError: another process has, or a file that is to be shortened is damaged.
        """
        if self.folder is None:
            return
        there = tuple(checkpoints(self.folder))
        gone = self.checkpoint is not None and not self.checkpoint.is_dir()
        if gone or (self.seen is not None and self.seen != there):
            raise UserError(
                f"another process has gone on with the run '{self.folder}' meanwhile: look at it, "
                "then start again"
            )
        cut_metrics(self.folder, self.step, dry_run=True)
        cut_rollouts(self.folder / "rollouts", self.step, dry_run=True)
        if (self.folder / "environment.json").is_file():
            read_environment(self.folder)


def from_checkpoint(checkpoint: Path, names: Sequence[str]) -> ResumePoint:
    """Go on from a checkpoint that was named.

    Raises:
        UserError: it belongs to none of the stages, or to no run of this command's.
    """
    folder = checkpoint.resolve().parent
    recipe = RunFolder(folder).recipe()
    for stage, name in enumerate(names):
        if len(names) == 1 or re.fullmatch(rf"{re.escape(name)}(-\d+)?", folder.name):
            model = None if stage == 0 else str(recipe["model"])
            return ResumePoint(stage, model, folder, checkpoint)
    raise UserError(
        f"resume_from_checkpoint '{checkpoint}' is of none of the stages {', '.join(names)}"
    )


def find(runs: Path, names: Sequence[str], say: Callable[[str], None]) -> ResumePoint:
    """Go on with the newest run of these names, from its newest whole checkpoint.

    Args:
        runs: the folder in which run folders are.
        names: the names of the runs of the recipe's stages.
        say: hears what was found.

    Raises:
        UserError: it has checkpoints, but none is whole.
    """
    for stage, name in reversed(list(enumerate(names))):
        folder = newest_run(runs, name)
        if folder is None:
            continue
        before = newest_run(runs, names[stage - 1]) if stage else None
        if before is not None and RunFolder(folder).recipe()["model"] != model_of(before):
            continue  # of an older pass through the stages
        there = checkpoints(folder)
        if finished(folder):
            if stage == len(names) - 1:
                words = f"the run '{folder}' is finished; leave out --resume for a new one"
                if there:
                    words += f", or resume_from_checkpoint={there[max(there)]} to train it longer"
                say(words)
                return ResumePoint(stage, folder=folder, finished=True)
            return ResumePoint(stage + 1, model_of(folder))
        recipe = RunFolder(folder).recipe()
        model = None if stage == 0 else str(recipe["model"])
        if recipe.get("trainer", {}).get("save_only_model"):
            say(
                f"the run '{folder}' has saved weights alone (save_only_model), from which no run "
                "goes on: a new one begins"
            )
            return ResumePoint(stage, model)
        checkpoint = newest_whole(folder, say)
        if checkpoint is not None:
            say(f"going on with '{folder}' from step {step_of(checkpoint)}")
        elif there:
            raise UserError(
                f"no checkpoint in '{folder}' is whole, so there is none to go on from: repair "
                "one, or leave out --resume for a new run"
            )
        else:
            say(f"the run '{folder}' has no checkpoint to go on from: it begins again")
        return ResumePoint(stage, model, folder, checkpoint, seen=tuple(there))
    say(f"no run of the name '{names[0]}' in '{runs}' to go on with: a new one begins")
    return ResumePoint()


def model_of(folder: Path) -> str:
    """What the next stage starts from: the best weights where a run has kept them."""
    return str((folder / (BEST if (folder / BEST).is_dir() else "model")).resolve())


def finished(folder: Path) -> bool:
    """Whether a run has left all it should: its models, and their evaluations if asked for."""
    if not (folder / "model").is_dir():
        return False
    run = RunFolder(folder)
    recipe = run.recipe()
    if not (recipe.get("eval_data") and recipe.get("reward")):
        return True
    wanted = {"trained", BEST} if (folder / BEST).is_dir() else {"trained"}
    return wanted <= run.evaluations().keys()


def clear(start: ResumePoint) -> None:
    """Take away what a run has written behind the point from which it goes on.

    Call it when that point has been reached: when its checkpoint has been loaded.
    """
    if start.folder is None:
        return
    cut_metrics(start.folder, start.step)
    cut_rollouts(start.folder / "rollouts", start.step)
    go_back(start.folder, start.step)
    reopen(start.folder, start.step)
    shutil.rmtree(start.folder / WRITING, ignore_errors=True)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """The settings in which a resolved recipe differs from one before, each with both values."""
    old, new = as_trained(before), as_trained(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in PLACES
        and not key.startswith(TWICE)
        and not _free(key)
    }


def _free(key: str) -> bool:
    """Whether it is a setting of the trainer that changes nothing of what is trained."""
    group, _, name = key.partition(".")
    return group == "trainer" and among(name.partition(".")[0], NOTHING)


def refuse_another_model(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run that goes on from another beginning.

    Args:
        folder: the run's folder.
        before: its resolved recipe.
        now: the one that it is to go on with.

    Raises:
        UserError: the model, or how it is loaded, is another.
    """
    for key, (was, has) in changes(before, now).items():
        if key.partition(".")[0] in BEGINNING:
            raise UserError(
                f"the run '{folder}' began with {key} {was}, and this recipe has {has}: resume "
                "with what the run began with"
            )


def refuse_another_choice(
    checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse a run that goes on and would choose its best weights in another way than before.

    Args:
        checkpoint: the checkpoint from which the run goes on.
        before: the run's resolved recipe.
        now: the one that it is to go on with.

    Raises:
        UserError: what is compared is not measured alike, or the best weights are gone.
    """
    if not any(recipe.get(key) for recipe in (before, now) for key in ACTS):
        return
    for key, (was, has) in changes(before, now).items():
        if key.partition(".")[0] in MEASURED_ALIKE:
            raise UserError(
                f"the run '{checkpoint.parent}' compares its evaluations, which began with {key} "
                f"{was}, and this recipe has {has}: resume with what the run began with"
            )
    if now.get("keep"):
        verify_best(checkpoint, now.get("best_metric") or CHOOSES[0])


def as_trained(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A resolved recipe as flat keys, the options that a method shares with TRL under ``method``.

    Older runs have the method's default there if such a key was given by itself; the value
    under ``trainer`` is the one that trained, then as now.
    """
    flat = flatten(recipe)
    for key in SHARED:
        if f"method.{key}" in flat and f"trainer.{key}" in flat:
            flat[f"method.{key}"] = flat.pop(f"trainer.{key}")
    return flat


def go_on_with(recipe: str, overrides: Sequence[str], start: ResumePoint, folder: Path) -> str:
    """The command that goes on with a run that began at ``start``, from its newest checkpoint."""
    arguments = [x for x in overrides if not x.startswith("resume_from_checkpoint=")]
    there = checkpoints(folder)
    if start.checkpoint is not None and start.seen is None and there:
        arguments.append(f"resume_from_checkpoint={there[max(there)]}")
    else:
        arguments.append("--resume")
    command = shlex.join(["prefix-rft", "train", recipe, *arguments])
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return command if processes == 1 else f"(as {processes} processes again) {command}"
