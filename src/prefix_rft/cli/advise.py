"""``prefix-rft advise``: from its options to a measurement, and what it says in words."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from prefix_rft.engines.models import quiet
from prefix_rft.evaluation.regimes import advice, measured_rule
from prefix_rft.evaluation.start import MeasuredStart
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.support.console import say
from prefix_rft.support.display import Display, by_job
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder, write_json
from prefix_rft.training.advise import SFT, START, Asked, advise

RESULT = "advice.json"


def run(args: argparse.Namespace, console: Console) -> None:
    """Measure as the options say, print it and leave it in ``advice.json``.

    Raises:
        UserError: options or a recipe that cannot be used.
    """
    for name in ("rows", "samples", "sft_steps", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    quiet()
    name = str(RecipeFile.read(args.recipe, args.overrides).data.get("name", "run"))
    folder = Path(args.output) if args.output else Path("advice") / name
    if folder.is_file() or (args.output and not folder.parent.is_dir()):
        raise UserError(f"--output '{folder}' is no folder, or the folder it is in does not exist")
    check_folder(folder, "--output" if args.output else "the folder of results")
    asked = Asked(args.rows, args.samples, args.seed, args.batch_size, args.sft_steps, folder)
    with Display(console) as display:
        display.phases.begin("loading the model")
        found = advise(args.recipe, args.overrides, asked, console, by_job(display))
    steps = args.sft_steps
    for key, title in ((START, "the start model"), (SFT, f"behind {steps} steps of SFT")):
        if key in found:
            say(console, f"{title}:", style="bold")
            for line in words(found[key]):
                say(console, f"  {line}")
    last, rule = found.get(SFT, found[START]), measured_rule()
    first, second = advice(last.solved, last.with_demonstration, rule)
    say(console, "advice:", style="bold")
    say(console, f"  {first}.")
    say(console, f"  {second[0].upper()}{second[1:]}.")
    if SFT not in found and last.with_demonstration:
        say(
            console,
            "  That is of the model as it is: if it has not learnt the demonstrations yet, ask "
            "again with --sft-steps N.",
        )
    numbers = {k: {**asdict(s), "lambda": asdict(s.solved)} for k, s in found.items()}
    write_json(folder / RESULT, {**numbers, "advice": [first, second], "rule": asdict(rule)})
    say(console, f"{RESULT} and all samples: {folder}")


def words(start: MeasuredStart) -> list[str]:
    """What was measured, line by line."""
    solved = start.solved
    lines = [
        f"solved without a prefix: {start.success} of {start.rows} x {start.samples} samples",
        f"lambda, solved rows of a step of {start.step_rows}: {solved.mean:.2g} "
        f"[{solved.low:.2g}, {solved.high:.2g}]",
    ]
    if start.flat is None:
        lines.append("groups without an advantage: unknown, ask for as many samples as a group has")
    else:
        flat = start.flat
        lines.append(
            f"groups without an advantage: {flat.wrong + flat.right:.0%} "
            f"({flat.wrong:.0%} all wrong, {flat.right:.0%} all right)"
        )
    shown = start.likelihood
    if shown is None:
        lines.append("demonstrations: none")
    else:
        lines.append(
            f"demonstrations: {start.with_demonstration} of {start.rows} rows have "
            f"{shown.demonstrations / start.with_demonstration:.3g} each, "
            f"{shown.tokens / shown.demonstrations:.0f} tokens long; log-likelihood "
            f"{shown.per_token:.2f} nats a token (perplexity {shown.perplexity:.2f}), "
            f"{shown.whole:.0f} a demonstration"
        )
    return lines
