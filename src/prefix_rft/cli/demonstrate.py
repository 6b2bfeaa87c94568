"""``prefix-rft demonstrate``: its options, and what it wrote in words."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from prefix_rft.cli.numbers import refuse_below_one, sampling_options
from prefix_rft.support.errors import UserError

POLICY = "policy"
RECORD = "demonstrations.json"
"""What the folder of the samples says of the teacher, its demonstrations and their cost."""


def add(commands: Any) -> None:
    """Add the command to the parser of the others."""
    p = commands.add_parser(
        "demonstrate",
        help="have a teacher write demonstrations to train_data, and keep the right ones",
        description="Sample a teacher on the recipe's train_data, grade its answers with the "
        "recipe's first reward, and write the rows with up to N right ones each as demonstrations: "
        "rejection sampling. The teacher is another model, of any vocabulary (texts are kept, "
        "no ids), or the policy itself, told the gold answer of each row. An answer that was cut, "
        "that quotes what told the teacher, or that training would drop is never kept. The same "
        "command goes on where it was interrupted and ends with the same bytes.",
        epilog="examples:\n"
        "  prefix-rft demonstrate recipe.yaml --teacher Qwen/Qwen3-8B --output shown.jsonl\n"
        "  prefix-rft demonstrate recipe.yaml --teacher policy --column answer --output own.jsonl\n"
        "  prefix-rft train recipe.yaml train_data=shown.jsonl method=prefix_rft\n"
        "'policy' is the recipe's model; a folder of that name is ./policy. Its answers without\n"
        "being told anything: prefix-rft collect.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("recipe", metavar="RECIPE.yaml")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    p.add_argument(
        "--teacher", required=True, metavar="MODEL", help="a folder, a Hub name, or: policy"
    )
    p.add_argument("--output", required=True, metavar="FILE.jsonl", help="the rows to write")
    p.add_argument(
        "--column",
        metavar="NAME",
        help="tell the teacher this column of each row, such as answer or demonstration",
    )
    p.add_argument(
        "--template",
        metavar="TEXT",
        help="how it is told, with {prompt} and {context} (default: the answer in a sentence)",
    )
    sampling_options(p, 8)
    p.add_argument("--all-rows", action="store_true", help="write the other rows too, as they are")
    p.add_argument(
        "--temperature", type=float, metavar="T", help="above 0 (default: the recipe's, else 1)"
    )


def told_by(args: argparse.Namespace) -> Any:
    """The teacher of the options, who is told a column; None for one who is told nothing.

    Raises:
        UserError: they do not go together, or the template cannot be used.
    """
    from prefix_rft.core.teacher import ANSWER, DEMONSTRATION, Teacher

    if args.column is None:
        if args.template is not None:
            raise UserError("--template says how a column is told: give --column, such as answer")
        if args.teacher == POLICY:
            raise UserError(
                "--teacher policy needs --column, such as answer; for its answers without being "
                "told anything use prefix-rft collect"
            )
        return None
    usual = DEMONSTRATION if args.column == "demonstration" else ANSWER
    template = usual if args.template is None else args.template
    return Teacher(context="column", column=args.column, weights="live", template=template)


def run(args: argparse.Namespace, console: Any, output: Path) -> None:
    """Write the rows and say what is in them.

    Raises:
        UserError: options, a recipe or a teacher that cannot be used, or nothing was right.
    """
    from prefix_rft.compare.collect import record_of
    from prefix_rft.engines.fingerprint import fingerprint
    from prefix_rft.engines.models import quiet
    from prefix_rft.engines.setup import configure
    from prefix_rft.evaluation.demonstrate import demonstrate
    from prefix_rft.evaluation.samples import Request
    from prefix_rft.recipe.model_options import find_model
    from prefix_rft.support.console import say
    from prefix_rft.support.display import Display, by_job
    from prefix_rft.support.writing import write_json, write_text

    refuse_below_one(args, "samples", "keep", "limit", "batch_size")
    told = told_by(args)
    quiet()
    setup = configure(args.recipe, args.overrides)
    setup.close()
    temperature = args.temperature
    if temperature is None:
        temperature = getattr(setup.args, "temperature", 1.0)
    if not 0 < temperature < math.inf:
        raise UserError(f"--temperature must be above 0, got {temperature}")
    own = setup.recipe.model_source()
    teacher = own if args.teacher == POLICY else find_model(args.teacher)
    request = Request(args.samples, temperature, 1, args.seed, args.batch_size)
    folder, started = output.with_suffix(""), time.monotonic()
    with Display(console) as display:
        display.phases.begin("loading the teacher")
        text, found = demonstrate(
            setup, teacher, told, request, args.keep, args.limit, args.all_rows, folder,
            by_job(display),
        )  # fmt: skip
    record = {
        "teacher": fingerprint(teacher),
        "told": told and {"column": told.column, "template": told.template},
        "samples": args.samples,
        "keep": args.keep,
        "temperature": temperature,
        "seed": args.seed,
        **record_of(found, teacher, time.monotonic() - started),
    }
    write_json(folder / RECORD, record)
    write_text(output, text)
    for line in words(found, record["costs"]["flops"]):
        say(console, line)
    say(console, f"the rows: {output}; samples and record: {folder}")


def words(found: Any, operations: float) -> list[str]:
    """The summary, in lines."""
    lines = [
        f"{found.demonstrations:,} demonstrations of {found.shown:,} of {found.rows:,} rows, "
        f"{found.length:.1f} tokens long on average",
        f"{found.right:,} of {found.samples:,} samples were right; {found.truncated:,} were cut at "
        "max_completion_length, of which none is kept",
    ]
    lines += [f"{n:,} of the right ones left out: {why}" for why, n in found.left_out.items()]
    if found.untold:
        lines.append(f"{found.untold:,} further rows have nothing to tell the teacher")
    lines.append(
        f"{found.sampled:,} tokens were sampled and {found.prefilled:,} of prompts read: "
        f"{operations:.2g} operations"
    )
    return lines
