"""``prefix-rft task``: its options, and what each task writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser of the others."""
    p = commands.add_parser(
        "task",
        help="write a bundled task: rows, base model and recipe",
        epilog="examples:\n  prefix-rft task countdown data/countdown\n"
        "  prefix-rft task chain data/chain --steps 12\n"
        "  prefix-rft task programs data/programs\n"
        "  prefix-rft task jigsaw data/jigsaw --rows 3 --columns 3   (needs the extra images)\n"
        "  prefix-rft task arithmetic data/arithmetic   (needs the extra lab)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "name",
        choices=list(WRITERS),
        help="countdown: a tiny model that knows arithmetic and has no goal; chain: a tiny model "
        "and a hidden rule of many steps, with few demonstrations; programs: a tiny model that "
        "writes functions that are described in words, with tests as reward; jigsaw: a tiny model "
        "that sees pictures, cut into pieces and shuffled, and the order that restores them; "
        "arithmetic: SmolLM2-135M-Instruct on sums of three terms",
    )
    p.add_argument("folder", metavar="FOLDER")
    p.add_argument(
        "--train-rows",
        type=int,
        metavar="N",
        help="default: 3000; chain: 75, parities 1024; programs: 1500; jigsaw: 1000",
    )
    p.add_argument("--valid-rows", type=int, default=200, help="to choose settings on")
    p.add_argument("--test-rows", type=int, default=400)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--operands", type=int, nargs="+", metavar="N", help="countdown: numbers of a puzzle (2 3)"
    )
    p.add_argument(
        "--solver-accuracy", type=float, help="countdown: accuracy of the demonstrations (1)"
    )
    p.add_argument("--steps", type=int, metavar="L", help="chain: steps of a chain (24 or 16)")
    p.add_argument(
        "--rule", choices=["new", "parity"], help="chain: a random table (default), or parities"
    )
    p.add_argument("--rows", type=int, metavar="M", help="jigsaw: pieces from top to bottom (2)")
    p.add_argument("--columns", type=int, metavar="N", help="jigsaw: from left to right (2)")


def run(args: argparse.Namespace, console: Any) -> None:
    """Write the task and say what comes next.

    Raises:
        UserError: options or a folder that cannot be used.
    """
    folder, write = Path(args.folder), WRITERS[args.name]
    if args.train_rows is None:
        own = {"chain": 1024 if args.rule == "parity" else 75, "programs": 1500, "jigsaw": 1000}
        args.train_rows = own.get(args.name, 3000)
    if args.train_rows < 1 or args.test_rows < 1 or args.valid_rows < 1:
        raise UserError("--train-rows, --valid-rows and --test-rows must be at least 1")
    for option, owner in OWN_OPTIONS.items():
        if args.name != owner and getattr(args, option) is not None:
            option = option.replace("_", "-")
            raise UserError(f"--{option} has no effect on {args.name}: it is of {owner} alone")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not a folder")
    try:
        write(args, folder, console)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"task '{args.name}': {error}") from error


def _countdown(args: argparse.Namespace, folder: Path, console: Any) -> None:
    from prefix_rft.tasks.countdown import write

    if args.operands and not all(2 <= n <= 6 for n in args.operands):
        raise UserError(f"--operands must be between 2 and 6, got {args.operands}")
    accuracy = 1.0 if args.solver_accuracy is None else args.solver_accuracy
    if not 0 <= accuracy <= 1:
        raise UserError(f"--solver-accuracy must be in [0, 1], got {accuracy}")
    rows = (args.train_rows, args.test_rows)
    write(folder, *rows, args.seed, args.valid_rows, args.operands, accuracy)
    say(
        console,
        f"wrote rows, base/, recipe.yaml, recipes/ and compare/ to {folder}\n"
        f"next: prefix-rft train {folder / 'recipe.yaml'}\n"
        f"  or: prefix-rft compare {folder / 'compare/quick.yaml'} --jobs 2",
    )


def _arithmetic(args: argparse.Namespace, folder: Path, console: Any) -> None:
    from prefix_rft.tasks.arithmetic import write

    write(folder, args.train_rows, args.test_rows, args.seed, args.valid_rows)
    say(
        console,
        f"wrote rows, model/ (SmolLM2-135M-Instruct), recipe.yaml, recipes/ and compare.yaml to "
        f"{folder}\nnext: prefix-rft train {folder / 'recipe.yaml'}",
    )


def _chain(args: argparse.Namespace, folder: Path, console: Any) -> None:
    from prefix_rft.tasks.chain import write

    rule = args.rule or "new"
    steps = {"new": 24, "parity": 16}[rule] if args.steps is None else args.steps
    rows = (args.train_rows, args.test_rows, args.seed, args.valid_rows)
    write(folder, *rows, steps, rule)
    say(
        console,
        f"wrote rows, base/, recipe.yaml, compare.yaml and forgetting.yaml to {folder}\n"
        f"next: prefix-rft train {folder / 'recipe.yaml'}\n"
        f"  or: prefix-rft compare {folder / 'compare.yaml'} --jobs 2",
    )


def _programs(args: argparse.Namespace, folder: Path, console: Any) -> None:
    from prefix_rft.tasks.programs import write

    write(folder, args.train_rows, args.test_rows, args.seed, args.valid_rows)
    say(
        console,
        f"wrote rows, base/ and recipe.yaml to {folder}\n"
        f"next: prefix-rft train {folder / 'recipe.yaml'}",
    )


def _jigsaw(args: argparse.Namespace, folder: Path, console: Any) -> None:
    from prefix_rft.tasks.jigsaw import write

    rows, columns = (2 if x is None else x for x in (args.rows, args.columns))
    counts = (args.train_rows, args.test_rows, args.seed, args.valid_rows)
    write(folder, *counts, rows, columns)
    say(
        console,
        f"wrote rows, pictures/, base/, recipe.yaml, recipes/ and forgetting.yaml to {folder}\n"
        f"next: prefix-rft train {folder / 'recipe.yaml'}",
    )
    if (rows, columns) != (2, 2):
        say(
            console,
            f"base/ has read jigsaws of 2 x 2 pieces alone; one that has read yours: python -m "
            f"prefix_rft.tasks.jigsaw.base_model {folder / 'base'} --rows {rows} "
            f"--columns {columns}",
        )


WRITERS = {
    "countdown": _countdown,
    "chain": _chain,
    "programs": _programs,
    "jigsaw": _jigsaw,
    "arithmetic": _arithmetic,
}
OWN_OPTIONS = {
    "operands": "countdown",
    "solver_accuracy": "countdown",
    "steps": "chain",
    "rule": "chain",
    "rows": "jigsaw",
    "columns": "jigsaw",
}
"""Options of one task alone."""
