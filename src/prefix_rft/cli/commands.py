"""What each command does. Functions here have the commands' names."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

from rich.console import Console

from prefix_rft.cli.numbers import refuse_below_one
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError


def train(args: argparse.Namespace) -> None:
    """``prefix-rft train``."""
    from accelerate import PartialState

    from prefix_rft.report import write_report
    from prefix_rft.support.display import Steadfast
    from prefix_rft.training.train import train as run

    console = Steadfast()
    folder = run(args.recipe, args.overrides, console, args.resume)
    if PartialState().is_main_process:
        say(console, f"report: {write_report([str(folder)])}")


def diffusion(args: argparse.Namespace) -> None:
    """``prefix-rft diffusion``."""
    from prefix_rft.diffusion.train import train as run
    from prefix_rft.report import write_report
    from prefix_rft.support.display import Steadfast

    console = Steadfast()
    folder = run(args.recipe, args.overrides, console, args.resume)
    say(console, f"report: {write_report([str(folder)])}")


def merge(args: argparse.Namespace) -> None:
    """``prefix-rft merge``."""
    from prefix_rft.engines.merge import merge as to_one_model

    weights = to_one_model(args.adapter, Path(args.output), args.dtype)
    say(Console(), f"{weights:,} weights: {args.output}")


def check(args: argparse.Namespace) -> int:
    """``prefix-rft check``."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing forks here
    from prefix_rft.checks.report import run_check

    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}")
    return 0 if run_check(args.recipe, args.overrides, Console(), args.limit) else 1


def inspect(args: argparse.Namespace) -> None:
    """``prefix-rft inspect``."""
    if args.teacher:
        from prefix_rft.cli.teacher import run

        run(args, Console())
        return
    from prefix_rft.checks.inspect import run_inspect

    for name in ("examples", "samples"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no effect without --teacher")

    run_inspect(args.recipe, args.overrides, Console(), args.row, args.step, args.model, args.ids)


def convert(args: argparse.Namespace) -> None:
    """``prefix-rft convert``."""
    from prefix_rft.data.converters import convert as rows_of
    from prefix_rft.data.files import find_source, raw_rows

    output = _new_rows(args.output)
    keys = {"path": args.source, "name": args.subset, "split": args.split}
    chosen = {k: v for k, v in keys.items() if v is not None}
    source = find_source(chosen if len(chosen) > 1 else args.source, Path())
    partial, count = output.with_suffix(".part"), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows_of(args.name, raw_rows(source), source.name):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        partial.rename(output)
    finally:
        partial.unlink(missing_ok=True)
    say(Console(), f"wrote {count} rows to {output}; read it with train_data: {output}")


def _new_rows(name: str) -> Path:
    """A file of rows that is yet to be written."""
    output = Path(name)
    if output.suffix != ".jsonl":
        raise UserError(f"the output '{output}' must end in .jsonl")
    if output.exists():
        raise UserError(f"'{output}' exists already: give another name")
    if not output.parent.is_dir():
        raise UserError(f"the folder of '{output}' does not exist")
    return output


def eval(args: argparse.Namespace) -> None:
    """``prefix-rft eval``."""
    from prefix_rft.cli.eval import run

    run(args, Console())


def collect(args: argparse.Namespace) -> None:
    """``prefix-rft collect``."""
    from prefix_rft.engines.models import quiet
    from prefix_rft.evaluation.collect import collect as own_answers
    from prefix_rft.evaluation.samples import Request
    from prefix_rft.support.display import Display, by_job

    refuse_below_one(args, "samples", "keep", "limit", "batch_size")
    if not 0 < args.temperature < math.inf:
        raise UserError(f"--temperature must be above 0, got {args.temperature}")
    output = _new_rows(args.output)
    quiet()
    request = Request(args.samples, args.temperature, 1, args.seed, args.batch_size)
    console = Console()
    with Display(console) as display:
        display.phases.begin("loading the model")
        found = own_answers(
            args.recipe, args.overrides, output, request, args.keep, args.limit, by_job(display)
        )
    say(
        console,
        f"{found.answers:,} own answers to {found.solved:,} of {found.rows:,} rows: {output}",
    )
    say(
        console,
        f"{found.sampled:,} tokens were sampled and {found.prefilled:,} of prompts read: "
        f"{output.with_suffix('')}",
    )


def demonstrate(args: argparse.Namespace) -> None:
    """``prefix-rft demonstrate``."""
    from prefix_rft.cli.demonstrate import run

    run(args, Console(), _new_rows(args.output))


def rollouts(args: argparse.Namespace) -> None:
    """``prefix-rft rollouts``."""
    from prefix_rft.cli.rollouts import run

    run(args, Console(), _new_rows(args.solved))


def influence(args: argparse.Namespace) -> None:
    """``prefix-rft influence``."""
    from prefix_rft.cli.influence import run

    run(args, Console())


def advise(args: argparse.Namespace) -> None:
    """``prefix-rft advise``."""
    from prefix_rft.cli.advise import run

    run(args, Console())


def compare(args: argparse.Namespace) -> int:
    """``prefix-rft compare``."""
    from prefix_rft.compare import run_compare

    try:
        rates = [float(x) for x in (args.sft_learning_rates or "").split(",") if x]
    except ValueError:
        text = args.sft_learning_rates
        raise UserError(f"--sft-learning-rates takes numbers and commas, got '{text}'") from None
    failed = run_compare(
        Console(),
        args.recipe,
        args.overrides,
        args.methods.split(",") if args.methods else None,
        args.seeds,
        rates or None,
        args.jobs,
        args.output,
        args.only_table,
    )
    return 1 if failed else 0


def continual(args: argparse.Namespace) -> int:
    """``prefix-rft continual``."""
    from prefix_rft.cli.continual import run

    return run(args, Console())


def report(args: argparse.Namespace) -> None:
    """``prefix-rft report``."""
    from prefix_rft.report import write_report

    path = write_report(args.runs, args.output)
    say(Console(), f"wrote {path}")


def show(args: argparse.Namespace) -> None:
    """``prefix-rft show``."""
    from prefix_rft.show import run_show

    run_show(
        Console(),
        args.run,
        step=args.step,
        verdict=args.verdict,
        prefix=args.prefix,
        best=args.best,
        limit=args.limit,
        full=args.full,
    )


def methods(args: argparse.Namespace) -> None:
    """``prefix-rft methods``."""
    from prefix_rft.cli.methods import show_method, show_methods
    from prefix_rft.methods import load

    if args.name:
        show_method(Console(), load(args.name))
    else:
        show_methods(Console())


def task(args: argparse.Namespace) -> None:
    """``prefix-rft task``."""
    from prefix_rft.cli.task import run

    run(args, Console())
