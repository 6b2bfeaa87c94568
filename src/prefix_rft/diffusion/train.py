"""``prefix-rft diffusion``: from a recipe to a run folder, and on from its newest checkpoint."""

from __future__ import annotations

import copy
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prefix_rft.diffusion.checkpoint import (
    load_optimizer,
    reference_at,
    refuse_other_rows,
    write,
)
from prefix_rft.diffusion.loss import Predict, squared_error
from prefix_rft.diffusion.models import Model, classes_of, load, predict_of
from prefix_rft.diffusion.pictures import Shades, write_grid
from prefix_rft.diffusion.pool import stream
from prefix_rft.diffusion.recipe import COMMAND, DiffusionRecipe, read
from prefix_rft.diffusion.rows import Rows, read_rows
from prefix_rft.diffusion.update import draw, sampled, update
from prefix_rft.runs.checkpoints import (
    WRITING,
    checkpoints,
    go_back,
    newest_whole,
    place,
    seal,
    step_of,
)
from prefix_rft.runs.folder import alone, free_run_folder, taken, write_start
from prefix_rft.runs.metrics import append_metrics, cut_metrics
from prefix_rft.runs.pictures import cut_grids, grid_path
from prefix_rft.runs.reader import RunFolder, flatten, newest_run
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import Interrupted, RunError, UserError, one_line
from prefix_rft.support.phases import Phases
from prefix_rft.support.writing import check_folder

FREE = ("max_steps", "pictures", "runs", "name")
"""Keys that may be others when a run goes on: no update depends on them."""


@dataclass
class Run:
    """A run in memory, between two updates.

    Attributes:
        recipe: the recipe.
        rows: its rows.
        folder: the run's folder.
        model: the model that is trained.
        reference: a copy of its network, whose weights are those of a checkpoint; None for SFT.
        optimizer: the optimizer.
        step: updates done.
        device: where the networks are.
    """

    recipe: DiffusionRecipe
    rows: Rows
    folder: Path
    model: Model
    reference: Any
    optimizer: torch.optim.Optimizer
    step: int
    device: torch.device

    def predict(self, network: Any) -> Predict:
        """How a network of this run is called."""
        recipe = self.recipe
        return predict_of(network, recipe.predict, recipe.folder, self.rows.labels)

    def save(self) -> None:
        """Write the checkpoint of this step, and its grid of pictures."""
        write(
            self.folder,
            self.step,
            self.model,
            self.optimizer,
            {"rows": self.rows.sha256},
            self.recipe.checkpoints.kept(self.step),
        )
        self.draw_grid()

    def draw_grid(self) -> None:
        """Write pictures of the model as it is: always from the same noise and conditions."""
        count = self.recipe.pictures
        if not count:
            return
        batch = self.rows.batch([i % len(self.rows.image) for i in range(count)])
        noise = torch.randn(batch.winner.shape, generator=stream(self.recipe.seed, "pictures", 0))
        told = None if batch.condition is None else batch.condition.to(self.device)
        predict = self.predict(self.model.network)
        drawn = sampled(self.model.process, predict, noise.to(self.device), told, self.recipe)
        values = Shades.of(batch.winner)
        write_grid(grid_path(self.folder, self.step), drawn, values)
        data = grid_path(self.folder, None)
        if not data.is_file():
            write_grid(data, batch.winner, values)


def train(path: str, overrides: Sequence[str], console: Console, resume: bool = False) -> Path:
    """Train as a recipe says; returns the run folder.

    Args:
        path: the recipe's file.
        overrides: ``key=value`` strings.
        console: where it is told of.
        resume: go on with the newest run of the recipe's name; begin where there is none.

    Raises:
        UserError: a recipe, a model or rows that cannot be used; nothing has been trained then.
        RunError: the run cannot go on.
        Interrupted: Ctrl-C; the message says how to go on.
    """
    recipe = read(path, overrides)
    found = newest_run(Path(recipe.runs), recipe.name, COMMAND) if resume else None
    if found is not None and (found / "model").is_dir():
        say(console, f"the run '{found}' is finished; leave out --resume for a new one")
        return found
    if resume and found is None:
        say(console, f"no run of the name '{recipe.name}' to go on with: a new one begins")
    folder = found or free_run_folder(Path(recipe.runs), recipe.name)
    check_folder(folder, "the run folder")
    rows = read_rows(recipe.folder / recipe.train_data, recipe.method == "dpo")
    with Display(console) as display:
        display.phases.begin("loading the model")
        model = load(recipe.folder / recipe.model)  # also where a checkpoint takes its place
        check_model(recipe, rows, model)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if found is None and taken(folder):
                raise UserError(f"another run has taken the folder '{folder}': start again")
            run = begin(recipe, rows, folder, model, lambda words: say(console, words), found)
            weights = sum(p.numel() for p in model.network.parameters())
            say(
                console,
                f"{recipe.method}: {len(rows.image):,} rows, {weights:,} weights on {run.device}, "
                f"update {run.step + 1} to {recipe.max_steps:,}: {folder}",
            )
            try:
                work(run, display.phases)
            except KeyboardInterrupt:
                command = shlex.join(["prefix-rft", COMMAND, path, *overrides, "--resume"])
                raise Interrupted(
                    f"stopped behind update {run.step}; go on from step "
                    f"{max(checkpoints(folder), default=0)} with: {command}",
                    signal.SIGINT,
                ) from None
    return folder


def check_model(recipe: DiffusionRecipe, rows: Rows, model: Model) -> None:
    """Call the model once with the first row, as the loss will.

    Raises:
        UserError: it cannot be called so, or a label is no class of it.
    """
    rows.check_labels(classes_of(model.network))
    batch = rows.batch([0])
    predict = predict_of(model.network, recipe.predict, recipe.folder, rows.labels)
    level_B = torch.zeros(1, dtype=torch.long)
    noised = model.process.noised(batch.winner, batch.winner, level_B, batch.condition)
    try:
        with torch.no_grad():
            squared_error(predict, noised)
    except UserError:
        raise
    except Exception as error:  # another package's network, called with a user's tensors
        told = "no condition" if batch.condition is None else tuple(batch.condition.shape)
        raise UserError(
            f"model '{recipe.model}' cannot be called with the first row of '{rows.path}', image "
            f"{tuple(batch.winner.shape)}, condition {told}: {type(error).__name__}: "
            f"{one_line(error)}; give rows that fit it, or a function 'predict'"
        ) from error


def begin(
    recipe: DiffusionRecipe,
    rows: Rows,
    folder: Path,
    model: Model,
    tell: Callable[[str], None],
    found: Path | None,
) -> Run:
    """The run at its first update, or at the newest checkpoint of ``found``.

    Raises:
        UserError: the run that was found began with other settings or rows, or has no checkpoint
            that is whole.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = recipe.resolved()
    checkpoint = None
    if found is not None:
        refuse_changes(found, RunFolder(found).recipe(), told)
        checkpoint = newest_whole(found, tell)
        if checkpoint is None and checkpoints(found):
            raise UserError(
                f"no checkpoint in '{found}' is whole, so there is none to go on from: leave out "
                "--resume for a new run"
            )
    step = 0 if checkpoint is None else step_of(checkpoint)
    if checkpoint is not None:
        refuse_other_rows(checkpoint, rows.sha256, rows.path)
        model = load(checkpoint)
    if found is not None:
        tell(f"going on with '{found}' from step {step}")
        cut_metrics(found, step)
        cut_grids(found, step)
        go_back(found, step)
        shutil.rmtree(found / WRITING, ignore_errors=True)
    write_start(folder, told, None if found is None else {"step": step})
    model.network.to(device)
    optimizer = torch.optim.AdamW(
        model.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    reference = None
    if recipe.method != "sft":
        reference = copy.deepcopy(model.network).requires_grad_(False)
    run = Run(recipe, rows, folder, model, reference, optimizer, step, device)
    if checkpoint is not None:
        load_optimizer(checkpoint, model, optimizer)
    else:
        run.save()
    return run


def refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a run that would go on with other settings than it began with.

    Raises:
        UserError: a key that is not in ``FREE`` has another value.
    """
    was, has = flatten(before), flatten(now)
    for key in dict.fromkeys([*was, *has]):
        if was.get(key) != has.get(key) and key not in FREE:
            raise UserError(
                f"the run '{folder}' began with {key} {was.get(key, 'not set')}, and this recipe "
                f"has {has.get(key, 'not set')}: resume with what the run began with"
            )


def work(run: Run, phases: Phases) -> None:
    """Update to the end, with a checkpoint behind each stage, and write the model."""
    recipe, pool = run.recipe, run.recipe.checkpoints
    policy = run.predict(run.model.network)
    reference = policy if run.reference is None else run.predict(run.reference)
    drawn_stage = None
    phases.begin("update", recipe.max_steps)
    while run.step < recipe.max_steps:
        began = time.monotonic()
        stage = run.step // pool.every
        if run.reference is not None and stage != drawn_stage:
            drawn_stage, from_step = stage, pool.draw(stage, recipe.seed)
            weights = load(reference_at(run.folder, from_step)).network.state_dict()
            run.reference.load_state_dict(weights)
        phases.at(run.step + 1)
        drawn = draw(recipe, run.model.process, run.rows, reference, run.step, run.device)
        try:
            told = update(recipe, run.model.process, policy, reference, run.optimizer, drawn)
        except RunError as error:
            raise RunError(f"update {run.step + 1}: {error}") from error
        run.step += 1
        if run.reference is not None:
            told["diffusion/reference"] = pool.draw(stage, recipe.seed)
        told["diffusion/seconds"] = time.monotonic() - began
        append_metrics(run.folder, run.step, told)
        if run.step % pool.every == 0 or run.step == recipe.max_steps:
            run.save()
    new = run.folder / WRITING / "model"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    run.model.save(new)
    seal(new, listed=False)
    place(new, run.folder / "model")
    shutil.rmtree(run.folder / WRITING)
