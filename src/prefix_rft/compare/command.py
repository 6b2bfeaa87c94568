"""From the options of ``prefix-rft compare`` to runs, tables and files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.compare.arm import overrides_of
from prefix_rft.compare.arms import read_comparison
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.page import write_page
from prefix_rft.compare.remains import CONTROLS, plain
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.runner import check_at_once, run_all
from prefix_rft.compare.view import as_csv, show
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.start import train_rows
from prefix_rft.recipe.along import ALONG
from prefix_rft.recipe.mapping import read_recipe, value_of
from prefix_rft.recipe.recipe import BLOCKS, Recipe
from prefix_rft.recipe.stages import STAGES
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder, write_json, write_text


def run_compare(
    console: Console,
    recipe: str,
    overrides: Sequence[str],
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    learning_rates: Sequence[float] | None = None,
    jobs: int = 1,
    output: str | None = None,
    only_table: bool = False,
) -> list[str]:
    """Run what is missing, then write ``comparison.csv``, ``comparison.md`` and the page.

    Args:
        console: the console for progress and the table.
        recipe: path of the recipe that all arms share.
        overrides: ``key=value`` strings for all arms.
        methods: arms; by default the recipe's own, or those of an honest table.
        seeds: the number of seeds of training, in place of the recipe's.
        learning_rates: the learning rates that imitation methods choose from.
        jobs: runs at once.
        output: folder; by default ``comparisons/NAME``.
        only_table: run nothing, make tables of what is done.

    Returns:
        a sentence for each run that failed.

    Raises:
        UserError: anything that cannot be compared.
    """
    quiet()
    check_at_once(jobs)
    board = board_of(recipe, overrides, methods, seeds, learning_rates, output)
    what = f"{len(board.comparison.arms)} arms, {board.comparison.seeds} seeds"
    failed = run_missing(console, board, what, 0 if only_table else jobs)
    arms = arm_results(board)
    if not arms:
        raise UserError(f"no run of '{board.folder}' is done: {'; '.join(failed) or 'run it'}")
    show(console, board, arms)
    board.folder.mkdir(parents=True, exist_ok=True)
    write_text(board.folder / "comparison.csv", as_csv(arms))
    controls = ""
    if board.comparison.controls:
        write_json(board.folder / CONTROLS, plain(board))
        controls = f"; controls: {CONTROLS}"
    page = write_page(board, arms)
    say(console, f"page: {page}; table: comparison.csv{controls}")
    return failed


def run_missing(console: Console, board: Board, what: str, jobs: int) -> list[str]:
    """Look at the records that are there, and run what is missing.

    Args:
        console: the console for progress.
        board: the runs.
        what: what they are, in words.
        jobs: runs at once; 0 runs nothing.

    Returns:
        a sentence for each run that failed.

    Raises:
        UserError: a record is damaged, or of other settings.
    """
    board.check()
    total, done = board.total(), sum(board.record(j) is not None for j in board.jobs())
    say(console, f"{what}: {total} runs, {done} done; in {board.folder}")
    if not jobs:
        return []
    try:
        with Display(console) as display:
            display.soon()
            return run_all(board, jobs, lambda text: say(console, text), display.phases.begin)
    except KeyboardInterrupt:
        say(console, "interrupted: the same command goes on from here")
        raise


def board_of(
    recipe: str,
    overrides: Sequence[str],
    methods: Sequence[str] | None,
    seeds: int | None,
    learning_rates: Sequence[float] | None,
    output: str | None,
) -> Board:
    """The board of a comparison whose arms can all be used; nothing is run or written.

    Raises:
        UserError: a recipe or an arm that cannot be used.
    """
    board = read_board(recipe, overrides, methods, seeds, learning_rates, output)
    for arm in board.comparison.arms:  # a fault in the last arm costs no time
        keys = {**board.shared, **arm.keys, **{k: v[0] for k, v in arm.sweep.items()}}
        try:
            setup = configure(recipe, overrides_of(keys))
            setup.close()
            refuse_along(setup.recipe)
            if arm.collect is not None:
                train_rows(setup, None)
        except UserError as error:
            raise UserError(f"arm '{arm.name}': {error}") from error
    return board


def read_board(
    recipe: str,
    overrides: Sequence[str],
    methods: Sequence[str] | None,
    seeds: int | None,
    learning_rates: Sequence[float] | None,
    output: str | None,
) -> Board:
    """The board of a comparison, without a look at each arm: enough for its tables.

    Raises:
        UserError: a recipe that cannot be used.
    """
    data = read_recipe(recipe, overrides)
    if STAGES in data:
        raise UserError("a comparison has arms, not stages: give 'start' to an arm")
    comparison = read_comparison(data, methods, seeds, learning_rates, folder=Path(recipe).parent)
    shared = shared_keys(overrides)
    setup = configure(recipe, overrides)
    setup.close()
    refuse_along(setup.recipe)
    if setup.recipe.eval_data is None or not setup.recipe.reward:
        raise UserError("a comparison needs eval_data and a reward in the recipe")
    if setup.recipe.trainer.get("max_steps", -1) < 1:
        raise UserError("a comparison needs max_steps in the recipe: the same budget for all")
    folder = folder_of(output, Path("comparisons") / setup.recipe.name)
    # What only a comparison reads is not part of what its runs share.
    resolved = replace(setup.recipe, name="")

    @functools.cache
    def usable(name: str, value: Any) -> bool:
        arm = comparison.arm(name)
        keys = {**shared, **arm.keys, **dict.fromkeys(arm.sweep, value)}
        try:
            configure(recipe, overrides_of(keys)).close()
        except UserError:  # a share of more than 1, say: the sweep ends at its edge
            return False
        return True

    return Board(
        comparison,
        str(Path(recipe).resolve()),
        resolved,
        shared,
        folder,
        usable=lambda arm, value: usable(arm.name, value),
    )


def folder_of(output: str | None, otherwise: Path) -> Path:
    """The folder of all runs; it is not made.

    Raises:
        UserError: it is a file, cannot be written, or the folder that it is in does not exist.
    """
    folder = Path(output) if output else otherwise
    if folder.is_file() or (output and not folder.absolute().parent.is_dir()):
        raise UserError(f"--output '{folder}' is a file, or the folder it is in does not exist")
    check_folder(folder, "the folder of the comparison")
    return folder


def refuse_along(recipe: Recipe) -> None:
    """Refuse evaluations along the way, and what acts on them.

    Raises:
        UserError: the recipe asks for some; arms are compared by their last weights, after steps
            that are counted, on rows by which none of them was chosen.
    """
    if recipe.reward_learning is not None:
        raise UserError(
            "a comparison counts the operations of its arms, and those of learning a reward are "
            "not counted: leave out reward_learning"
        )
    asked = [key for key in ALONG if getattr(recipe, key) is not None]
    if asked:
        raise UserError(
            "a comparison trains every arm for all its steps and evaluates it then, on rows that "
            f"chose nothing: leave out {' and '.join(asked)} ({' '.join(f'~{k}' for k in asked)} "
            "on the command line); 'trajectory' of 'compare' measures along the way"
        )


def shared_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The overrides as keys and values, those of the comparison itself aside."""
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, _ = text.partition("=")
        if key.partition(".")[0] not in BLOCKS and key not in ("name", "runs", "seed"):
            values[key] = value_of(text) if equals else None
    return values
