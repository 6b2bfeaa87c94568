"""``prefix-rft rollouts``: its options, and what it wrote in words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser of the others."""
    p = commands.add_parser(
        "rollouts",
        help="write what a run's policy has solved as demonstrations",
        description="The rows of a recipe that a run's own rollouts solved, with these as "
        "demonstrations: on-policy rollouts that came to their end and that every grader calls "
        "correct, the last different ones of each row. Nothing that began with a demonstration "
        "counts.",
        epilog="examples:\n"
        "  prefix-rft rollouts runs/rft --recipe recipe.yaml --solved own.jsonl\n"
        "  prefix-rft train recipe.yaml method=sft train_data=own.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run folder with rollouts")
    p.add_argument("--recipe", required=True, metavar="RECIPE.yaml", help="that the run is of")
    p.add_argument("--solved", required=True, metavar="FILE.jsonl", help="the rows to write")
    p.add_argument("--keep", type=int, default=4, metavar="K", help="answers of a row (4)")
    p.add_argument("--from-step", type=int, default=0, metavar="N", help="later rollouts alone (0)")


def run(args: argparse.Namespace, console: Any, output: Path) -> None:
    """Write the rows and say how many there are.

    Raises:
        UserError: options, a run or a recipe that cannot be used, or nothing was solved.
    """
    from prefix_rft.engines.models import quiet
    from prefix_rft.evaluation.own_rollouts import write_solved
    from prefix_rft.support.console import say

    if args.keep < 1 or args.from_step < 0:
        raise UserError("--keep must be at least 1 and --from-step at least 0")
    quiet()
    found = write_solved(Path(args.run), args.recipe, output, args.keep, args.from_step)
    say(
        console,
        f"{found.right:,} of {found.rollouts:,} on-policy rollouts are right: {found.answers:,} "
        f"different answers to {found.rows:,} rows: {output}",
    )
