"""``prefix-rft train``: the stages of a recipe, and where they go on."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from prefix_rft.data.moment import now
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure, is_checkpoint
from prefix_rft.engines.verl import from_recipe as cluster
from prefix_rft.recipe.recipe import load_recipe, read_recipe, stage_names
from prefix_rft.recipe.resolved import resolved
from prefix_rft.runs.folder import alone, taken, write_start
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder
from prefix_rft.training.progress import Display
from prefix_rft.training.resume import (
    Start,
    find,
    from_checkpoint,
    newest_run,
    refuse_on_cluster,
)
from prefix_rft.training.run import Command, run


def train(path: str, overrides: Sequence[str], console: Console, resume: bool = False) -> Path:
    """Train as the recipe says, stage by stage; returns the last run folder.

    Args:
        path: of the recipe.
        overrides: ``key=value`` strings.
        console: to report to.
        resume: go on with the newest run of the recipe's name; begin where there is none.

    Raises:
        UserError: anything in the recipe, data, model or reward that cannot be used.
        Interrupted: a signal stopped the run, after a checkpoint.
    """
    quiet()
    if int(os.environ.get("RANK", "0")):
        console = Console(quiet=True)  # one process speaks for all
    data = read_recipe(path, overrides)
    names = stage_names(data)
    if data.get("engine") == "verl":
        return on_cluster(path, overrides, console, resume)
    start = Start()
    if checkpoint := data.get("resume_from_checkpoint"):
        if resume:
            raise UserError("give --resume or resume_from_checkpoint, not both")
        is_checkpoint(checkpoint)
        start = from_checkpoint(Path(str(checkpoint)), names)
    elif resume:
        # The recipe is read as a whole before anything is made of what it names.
        runs = load_recipe(path, overrides).runs
        start = find(Path(runs), names, lambda words: say(console, words))
    if start.finished and start.folder is not None:
        return start.folder
    # All stages are resolved before the first one runs: a fault in the last costs no time.
    for stage in range(start.stage, len(names)) if len(names) > 1 else ():
        configure(path, overrides, stage, start.model).close()
    folder = Path()
    for stage in range(start.stage, len(names)):
        if len(names) > 1:
            say(console, f"stage {stage + 1} of {len(names)}: {names[stage]}")
        of_stage = with_checkpoint(overrides, start.checkpoint)
        with (
            closing(configure(path, of_stage, stage, start.model, start.folder)) as setup,
            Display(console) as display,
        ):
            folder = run(setup, display, start, Command(path, tuple(overrides)))
        start = Start(stage + 1, str((folder / "model").resolve()))
        gc.collect()  # a trainer and its callbacks know each other: free it before the next one
    return folder


def on_cluster(path: str, overrides: Sequence[str], console: Console, resume: bool) -> Path:
    """Train with ``engine: verl``; returns the run folder."""
    if len(stage_names(read_recipe(path, overrides))) > 1:
        raise UserError("engine: verl runs one stage: give each stage a recipe of its own")
    with closing(configure(path, overrides)) as setup:
        recipe, args = setup.recipe, setup.args
        folder = newest_run(Path(recipe.runs), recipe.name) if resume else None
        if folder is None:
            folder, resume = Path(args.output_dir), False
        check_folder(folder, "the run folder")
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not resume and taken(folder):
                raise UserError(f"another run has taken the folder '{folder}': start again")
            start = Start(folder=folder, checkpoint=folder) if resume else Start()
            args.chat_template_date = args.chat_template_date or start.date() or now()
            told = resolved(recipe, setup.method, args)
            if resume:
                refuse_on_cluster(folder, RunFolder(folder).recipe(), told)
            write_start(folder, told, {"engine": "verl"} if resume else None)
            cluster.run(recipe, args, folder, console, resume)
    return folder


def with_checkpoint(overrides: Sequence[str], checkpoint: Path | None) -> list[str]:
    """The overrides for a stage that goes on from a checkpoint, or begins."""
    return [*overrides, f"resume_from_checkpoint={json.dumps(checkpoint and str(checkpoint))}"]
