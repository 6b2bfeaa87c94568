"""``prefix-rft continual``: its options."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLE = """the block of the recipe, in which any key of a recipe can differ:
  continual:
    tasks:                       # at least two, in order
      sums: {train_data: sums.jsonl, eval_data: sums-test.jsonl, reward: math}
      words: {train_data: words.jsonl, eval_data: words-test.jsonl, reward: exact}
    arms:
      sft: {method: sft, "~num_generations": null, learning_rate: 1e-5}
      grpo: {method: grpo}
    seeds: 3
    forgetting: suite.yaml       # what no stage trains on
examples:
  prefix-rft continual recipe.yaml
  prefix-rft continual recipe.yaml --arms sft,grpo --seeds 5 --jobs 2
  prefix-rft continual recipe.yaml --only-table"""


def add(commands: Any) -> None:
    """Add the command to the parser of the others."""
    p = commands.add_parser(
        "continual",
        help="train on tasks one after the other and say what is forgotten",
        description="Each arm trains on the tasks in turn, each stage from the model of the one "
        "before; after every stage all tasks are evaluated, and a suite that nothing trains on. "
        "Average accuracy, forgetting (arXiv 2507.05386) and paired differences with intervals, "
        "beside a run on all tasks at once. The same command goes on where it was interrupted.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("recipe", metavar="RECIPE.yaml")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    p.add_argument("--arms", metavar="A,B,...", help="of the recipe's (default: all)")
    p.add_argument("--seeds", type=int, metavar="N", help="runs of each arm (default: 3)")
    p.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    p.add_argument("--output", metavar="FOLDER", help="default: comparisons/NAME-continual")
    p.add_argument("--only-table", action="store_true", help="run nothing, make the tables again")


def run(args: argparse.Namespace, console: Any) -> int:
    """Run what is missing; 1 if a run failed.

    Raises:
        UserError: anything that cannot be trained on, or compared.
    """
    from prefix_rft.compare.continual import run_continual

    failed = run_continual(
        console,
        args.recipe,
        args.overrides,
        args.arms.split(",") if args.arms else None,
        args.seeds,
        args.jobs,
        args.output,
        args.only_table,
    )
    return 1 if failed else 0
