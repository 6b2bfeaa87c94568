"""``prefix-rft train``: the stages of a recipe, and where they go on."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from prefix_rft.data.moment import now
from prefix_rft.engines.arguments import is_checkpoint
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import engine_of, set_up
from prefix_rft.recipe.recipe import ENGINES, RecipeFile
from prefix_rft.recipe.resolved import resolved
from prefix_rft.runs.folder import alone, taken, write_start
from prefix_rft.runs.reader import RunFolder, newest_run
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder
from prefix_rft.training.resume import (
    ResumePoint,
    changes,
    find,
    from_checkpoint,
    model_of,
)
from prefix_rft.training.run import Command, run


def train(path: str, overrides: Sequence[str], console: Console, resume: bool = False) -> Path:
    """Train as the recipe says, stage by stage; returns the last run folder.

    Args:
        path: the recipe's path.
        overrides: ``key=value`` strings.
        console: the console to report to.
        resume: go on with the newest run of the recipe's name; begin where there is none.

    Raises:
        UserError: anything in the recipe, data, model or reward that cannot be used.
        Interrupted: a signal stopped the run, after a checkpoint.
    """
    quiet()
    if int(os.environ.get("RANK", "0")):
        console = Console(quiet=True)  # one process speaks for all
    file = RecipeFile.read(path, overrides)
    names = file.stages
    if file.engine in ENGINES and engine_of(file.engine).RUNS_ITSELF:
        return by_itself(file, console, resume)
    start = ResumePoint()
    if checkpoint := file.data.get("resume_from_checkpoint"):
        if resume:
            raise UserError("give --resume or resume_from_checkpoint, not both")
        is_checkpoint(checkpoint)
        start = from_checkpoint(Path(str(checkpoint)), names)
    elif resume:
        # The recipe is read as a whole before anything is made of what it names.
        start = find(Path(file.recipe().runs), names, lambda words: say(console, words))
    if start.finished and start.folder is not None:
        return start.folder
    # All stages are resolved before the first one runs: a fault in the last costs no time.
    for stage in range(start.stage, len(names)) if len(names) > 1 else ():
        set_up(file, stage, **start.settings()).close()
    folder = Path()
    for stage in range(start.stage, len(names)):
        if len(names) > 1:
            say(console, f"stage {stage + 1} of {len(names)}: {names[stage]}")
        checkpoint = start.checkpoint and str(start.checkpoint)
        of_stage = {**start.settings(), "resume_from_checkpoint": checkpoint}
        with (
            closing(set_up(file, stage, start.folder, **of_stage)) as setup,
            Display(console) as display,
        ):
            folder = run(setup, display, start, Command(path, tuple(overrides)))
        start = ResumePoint(stage + 1, model_of(folder))
        gc.collect()  # a trainer and its callbacks know each other: free it before the next one
    return folder


def by_itself(file: RecipeFile, console: Console, resume: bool) -> Path:
    """Train with an engine that runs by itself; returns the run folder."""
    if len(file.stages) > 1:
        raise UserError(
            f"engine: {file.engine} runs one stage: give each stage a recipe of its own"
        )
    with closing(set_up(file)) as setup:
        recipe, args, engine = setup.recipe, setup.args, setup.engine
        folder = newest_run(Path(recipe.runs), recipe.name) if resume else None
        if folder is None:
            folder, resume = Path(args.output_dir), False
        check_folder(folder, "the run folder")
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not resume and taken(folder):
                raise UserError(f"another run has taken the folder '{folder}': start again")
            start = ResumePoint(folder=folder, checkpoint=folder) if resume else ResumePoint()
            args.chat_template_date = args.chat_template_date or start.date() or now()
            told = resolved(recipe, setup.method, args)
            if resume:
                engine.refuse_changes(folder, changes(RunFolder(folder).recipe(), told), told)
            write_start(folder, told, {"engine": recipe.engine} if resume else None)
            engine.run(recipe, args, folder, console, resume)
    return folder
