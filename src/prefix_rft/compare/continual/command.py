"""From the options of ``prefix-rft continual`` to runs, matrices, tables and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.compare.arm import overrides_of
from prefix_rft.compare.command import folder_of, refuse_along, run_missing, shared_keys
from prefix_rft.compare.continual import tables
from prefix_rft.compare.continual.page import write_page
from prefix_rft.compare.continual.results import all_ways, plain_matrix
from prefix_rft.compare.continual.settings import Continual, read_continual
from prefix_rft.compare.continual.stages import UNION, stage_arms
from prefix_rft.compare.continual.union import refuse_unlike, union_of
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.runner import check_at_once
from prefix_rft.compare.task import ContinualTask
from prefix_rft.compare.view import rich_table
from prefix_rft.data import load_rows
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.run import check_golds
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.rewards import close_all, load_rewards, missing_columns
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_json, write_text


def run_continual(
    console: Console,
    recipe: str,
    overrides: Sequence[str],
    arms: Sequence[str] | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    output: str | None = None,
    only_table: bool = False,
) -> list[str]:
    """Run what is missing, then write every matrix, ``continual.csv``, ``.md`` and the page.

    Args:
        console: the console for progress and the tables.
        recipe: path of the recipe with the block ``continual``.
        overrides: ``key=value`` strings for all runs.
        arms: the names of the arms to take; all by default.
        seeds: the number of seeds of training, in place of the recipe's.
        jobs: runs at once.
        output: folder; by default ``comparisons/NAME-continual``.
        only_table: run nothing, make tables of what is done.

    Returns:
        a sentence for each run that failed.

    Raises:
        UserError: anything that cannot be trained on, or compared.
    """
    quiet()
    check_at_once(jobs)
    board, continual = read_board(recipe, overrides, arms, seeds, output)
    if not only_table:
        check_everything(board, continual)
    what = f"{len(continual.arms)} arms, {len(board.tasks)} tasks, {board.comparison.seeds} seeds"
    if not only_table:
        _write_rows(board)
    failed = run_missing(console, board, what, 0 if only_table else jobs)
    ways = {t: all_ways(board, continual, t) for t in board.comparison.temperatures}
    if not any(len(own) > 1 for own in ways.values()):
        words = "; ".join(failed) or "run it"
        raise UserError(f"no arm of '{board.folder}' has been through all tasks: {words}")
    for block in (
        *tables.accuracy(board, continual, ways, "\n"),
        *tables.forgotten(board, continual, ways, "\n"),
        *tables.matrices(board, ways[board.comparison.temperatures[0]]),
        *tables.kept(board, continual, ways, "\n"),
    ):
        console.print(rich_table(block))
    board.folder.mkdir(parents=True, exist_ok=True)
    _write_matrices(board, continual)
    write_text(board.folder / "continual.csv", tables.as_csv(ways))
    page = write_page(board, continual, ways)
    say(console, f"page: {page}; table: continual.csv; every run's matrix: matrices/")
    return failed


def read_board(
    recipe: str,
    overrides: Sequence[str],
    arms: Sequence[str] | None,
    seeds: int | None,
    output: str | None,
) -> tuple[Board, Continual]:
    """The board of a sequence of tasks, without a look at rows or arms: enough for its tables.

    Args:
        recipe: the recipe's path.
        overrides: ``key=value`` strings for all runs.
        arms: the names of the arms to take; all by default.
        seeds: the number of seeds in place of the recipe's.
        output: the folder of all runs.

    Raises:
        UserError: a recipe that cannot be used.
    """
    data = read_recipe(recipe, overrides)
    continual = read_continual(data, arms, seeds)
    shared = shared_keys(overrides)
    tasks = [task_of(recipe, shared, name, keys) for name, keys in continual.tasks.items()]
    stages = stage_arms(continual, tasks, data)
    first = tasks[0].recipe
    board = Board(
        replace(continual.comparison, arms=stages),
        str(Path(recipe).resolve()),
        replace(first, name=""),
        shared,
        folder_of(output, Path("comparisons") / f"{data.get('name', first.name)}-continual"),
        tasks=[replace(task, recipe=replace(task.recipe, name="")) for task in tasks],
    )
    board.sets()  # whose names are to differ
    return board, continual


def task_of(
    recipe: str, shared: Mapping[str, Any], name: str, keys: Mapping[str, Any]
) -> ContinualTask:
    """A task as the recipe and its own keys say.

    Args:
        recipe: the recipe's path.
        shared: keys that every run is given beside the recipe.
        name: the task's name.
        keys: its own keys.

    Raises:
        UserError: they cannot be used, or there is nothing to evaluate it on.
    """
    try:
        setup = configure(recipe, overrides_of({**shared, **keys}))
        setup.close()
        refuse_along(setup.recipe)
        if setup.recipe.eval_data is None or not setup.recipe.reward:
            raise UserError("it needs eval_data and a reward, on which every stage is evaluated")
        return ContinualTask(name, keys, setup.recipe, setup.args.max_completion_length)
    except UserError as error:
        raise UserError(f"task '{name}': {error}") from error


def check_everything(board: Board, continual: Continual) -> None:
    """Look at all rows, and at every stage of every arm, before anything is trained.

    Raises:
        UserError: something cannot be used; the message says of which task or stage.
    """
    for task in board.tasks:
        try:
            _check_rows(task)
        except UserError as error:
            raise UserError(f"task '{task.name}': {error}") from error
    if continual.multi_task:
        refuse_unlike(board.tasks)
    for arm in board.comparison.arms:
        try:
            setup = configure(board.recipe, overrides_of({**board.shared, **arm.keys}))
            setup.close()
            refuse_along(setup.recipe)
        except UserError as error:
            raise UserError(f"arm '{arm.name}': {error}") from error


def _check_rows(task: ContinualTask) -> None:
    """Look whether a task's rows can be read, and whether its reward finds its columns in them."""
    own = task.recipe
    rewards, _ = load_rewards(own.reward, own.folder)
    with ExitStack() as stack:
        stack.callback(close_all, rewards)
        for data in (own.train_data, own.eval_data):
            rows = load_rows(data or "", folder=own.folder, reading=own.reading())
            if missing := missing_columns(rewards, rows.column_names):
                raise UserError(f"{missing[0]}, in '{data}'")
    check_golds(task.problems)


def _write_rows(board: Board) -> None:
    """Write the rows of all tasks, where a run trains on them that has no record yet."""
    on_them = [job for job in board.jobs() if job.arm is not None and job.arm.rows is not None]
    if any(board.record(job) is None for job in on_them):
        board.folder.mkdir(parents=True, exist_ok=True)
        write_text(board.folder / UNION, union_of(board.tasks))


def _write_matrices(board: Board, continual: Continual) -> None:
    """Write ``matrices/ARM/seed-N/matrix.json`` of every seed that has been through all tasks."""
    for arm in continual.arms:
        for seed in range(board.comparison.seeds):
            found = plain_matrix(board, continual, arm.name, seed)
            if found is not None:
                folder = board.folder / "matrices" / arm.name / f"seed-{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "matrix.json", found)
