"""``prefix-rft influence``: its options, and what they measure in words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser of the others."""
    p = commands.add_parser(
        "influence",
        help="measure whether training on some demonstrations would unlearn others",
        description="Gradients of the mean log-prob of demonstrations: their dot products and "
        "cosines between rows to train on and rows to keep, and the perplexity of both under the "
        "model. Where a cosine is negative, a step on the one row makes the other less likely, to "
        "first order (arXiv 2506.23508).",
        epilog="examples:\n"
        "  prefix-rft influence MODEL --train new.jsonl --probe old.jsonl\n"
        "  prefix-rft influence runs/x/model --train a.jsonl --probe b.jsonl --output found.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help="a model folder or a Hub name")
    p.add_argument("--train", required=True, metavar="FILE", help="rows that would be trained on")
    p.add_argument("--probe", required=True, metavar="FILE", help="rows that are looked at")
    p.add_argument("--train-rows", type=int, default=64, metavar="N", help="the first (64)")
    p.add_argument(
        "--probe-rows", type=int, default=8, metavar="N",
        help="the first (8); a gradient of the whole model is held for each",
    )  # fmt: skip
    p.add_argument("--output", metavar="FILE.json", help="the matrices, for a program")


def run(args: argparse.Namespace, console: Any) -> None:
    """Measure, print, and write what was asked for.

    Raises:
        UserError: rows, a model or an output that cannot be used.
    """
    from prefix_rft.data import Renderer, load_rows
    from prefix_rft.data.render import end_of_text_ids
    from prefix_rft.engines.models import give_template, load_model, quiet
    from prefix_rft.evaluation.influence import influence, pairs_of
    from prefix_rft.support.console import say
    from prefix_rft.support.display import Display
    from prefix_rft.support.writing import write_json

    for name in ("train_rows", "probe_rows"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    output = Path(args.output) if args.output else None
    if output is not None and (output.suffix != ".json" or not output.parent.is_dir()):
        raise UserError(f"the output '{output}' must end in .json, in a folder that exists")
    quiet()
    parts: dict[str, list[Any]] = {
        name: list(load_rows(getattr(args, name), limit=getattr(args, f"{name}_rows")))
        for name in ("probe", "train")
    }
    with Display(console) as display:
        display.phases.begin("loading the model")
        model, tokenizer = load_model(args.model)
        give_template(tokenizer, parts["train"][0]["prompt"])
        render = Renderer(tokenizer, end_of_text_ids(tokenizer, model.generation_config))
        pairs = {k: pairs_of(rows, render, f"--{k}") for k, rows in parts.items()}
        display.phases.begin("gradient", sum(map(len, pairs.values())))
        found = influence(model, render, pairs["probe"], pairs["train"], display.phases.at)
    if output is not None:
        write_json(output, plain(found))
    show(console, found)
    if output is not None:
        say(console, f"matrices: {output}")


def plain(found: Any) -> dict[str, Any]:
    """All of it as plain data."""
    names = ("dot_VU", "cosine_VU", "probe_norm_V", "train_norm_U", "probe_logp_V", "train_logp_U")
    return {name: getattr(found, name).tolist() for name in names}


def show(console: Any, found: Any) -> None:
    """The numbers in words: of all pairs, and of each row that is looked at."""
    from rich.table import Table

    from prefix_rft.support.console import say

    cosine, dot = found.cosine_VU, found.dot_VU
    probe, train = found.perplexities
    say(console, f"perplexity: {train:.4g} of the rows to train on, {probe:.4g} of those looked at")
    table = Table(title="of one step on all rows to train on, to first order")
    for column in ("row looked at", "d log-prob / rate", "mean cosine", "rows that unlearn it"):
        table.add_column(column, justify="right")
    for number, (dots, cosines) in enumerate(zip(dot, cosine, strict=True), 1):
        against = int((cosines < 0).sum())
        table.add_row(
            f"{number:,}",
            f"{dots.mean():+.4g}",
            f"{cosines.mean():+.3f}",
            f"{against:,} of {len(cosines):,}",
        )
    table.add_row(
        "all", f"{dot.mean():+.4g}", f"{cosine.mean():+.3f}",
        f"{int((cosine < 0).sum()):,} of {cosine.numel():,}",
    )  # fmt: skip
    console.print(table)
