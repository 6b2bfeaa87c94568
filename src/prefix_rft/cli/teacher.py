"""``prefix-rft inspect --teacher``: what teachers are shown, and whether that is worth anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing

from rich.console import Console

from prefix_rft.checks.inspect import show
from prefix_rft.checks.teacher_row import teacher_row
from prefix_rft.core.teacher import FROM_GROUPS
from prefix_rft.engines.contexts import LOOKED_AT
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import Setup, configure
from prefix_rft.evaluation.samples import Request
from prefix_rft.support.console import named, say
from prefix_rft.support.display import Display, by_job
from prefix_rft.support.errors import UserError
from prefix_rft.support.untrusted import visible
from prefix_rft.training.first_gap import FirstGap, TeacherRow, first_gaps
from prefix_rft.training.teacher_start import StartModel, log_ratios

SHOWN = 3
"""Examples of which a row is shown."""
EXAMPLES = 64


def run(args: argparse.Namespace, console: Console) -> None:
    """Show rows of each teacher of a recipe, and what the start model solves behind its prompts.

    Raises:
        UserError: options or a recipe that cannot be used, or its method has no teacher.
    """
    quiet()
    with closing(configure(args.recipe, args.overrides)) as setup:
        examples = EXAMPLES if args.examples is None else args.examples
        samples = setup.plan.generations if args.samples is None else args.samples
        _check(args, setup, examples, samples)
        source = args.model or setup.recipe.model_source()
        request = Request(
            samples, setup.args.temperature, setup.args.max_completion_length, setup.args.seed
        )
        limit = max(examples, args.row + SHOWN - 1, LOOKED_AT)
        with Display(console) as display:
            display.phases.begin("loading the model")
            start = StartModel.load(setup, source, limit, samples=examples > 0)
            sampled = min(examples, len(start.examples))
            found = first_gaps(setup, start, request, sampled, args.step, by_job(display))
        if args.row > len(start.examples):
            raise UserError(f"--row {args.row}: there are {len(start.examples)} rows")
        for gap in found:
            for number in range(args.row, min(args.row + SHOWN, len(start.examples) + 1)):
                _show(console, start, gap, number, samples, args.ids)
            seen = gap.rows[: samples * sampled] if sampled else gap.rows
            for line in words(gap, seen, samples):
                say(console, line)


def _check(args: argparse.Namespace, setup: Setup, examples: int, samples: int) -> None:
    """Look whether there is something to show."""
    method = setup.method
    if not method.teachers:
        raise UserError(f"method '{method.name}' has no teacher: leave out --teacher")
    for name, value, least in (
        ("row", args.row, 1),
        ("examples", examples, 0),
        ("step", args.step, 0),
    ):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    siblings = any(t.shown in FROM_GROUPS for t in method.teachers)
    least = 2 if siblings and examples else 1
    if samples < least:
        why = ": a teacher is shown another row of the group" if least == 2 else ""
        raise UserError(f"--samples must be at least {least}, got {samples}{why}")


def _show(
    console: Console, start: StartModel, gap: FirstGap, number: int, samples: int, ids: bool
) -> None:
    """The first row of an example that a teacher teaches, or why there is none."""
    rows = gap.rows[(number - 1) * samples : number * samples]
    row = next((r for r in rows if r.shown is not None), rows[0])
    name = f"row {number}, teacher '{gap.teacher.name}'"
    if row.shown is None:
        say(console, f"{name}: not taught, {row.why}\n")
        return
    say(console, f"{name}{_verdicts(row)}")
    said = [] if row.own is None else row.own[0]
    ratios = log_ratios(start, gap.teacher, row.asked, row.shown, said) if said else []
    show(console, teacher_row(row.asked, row.shown, said, ratios), start.render, ids)


def _verdicts(row: TeacherRow) -> str:
    """What becomes of an answer with and without the teacher's prompt."""
    words = ""
    if row.own is not None:
        words += f": the policy's answer is '{row.own[1].verdict.status}'"
    if row.behind is not None:
        sample = row.behind[1]
        words += f"; behind the teacher's prompt '{sample.verdict.status}': {visible(sample.text)}"
    return words


def words(gap: FirstGap, rows: Sequence[TeacherRow], samples: int) -> Iterator[str]:
    """Whom a teacher teaches, and what its prompt is worth, line by line.

    Args:
        gap: what was measured.
        rows: the rows that are spoken of.
        samples: the rows of an example.
    """
    teacher = gap.teacher
    why: dict[str, list[int]] = {}
    for row in rows:
        if row.why:
            why.setdefault(row.why, []).append(row.example + 1)
    taught = sum(not row.why for row in rows)
    yield (
        f"teacher '{teacher.name}' ({teacher.shown}, {teacher.weights}): {taught} of {len(rows)} "
        f"rows taught, of {len(rows) // samples} examples x {samples}"
    )
    for reason, numbers in why.items():
        distinct = list(dict.fromkeys(numbers))
        several = "rows" if len(distinct) > 1 else "row"
        listed = named([str(n) for n in distinct[:5]], len(distinct))
        yield f"  {len(numbers)} not: {reason} ({several} {listed} of train_data)"
    if gap.same:
        yield (
            "  its weights and its prompt are the policy's own at the start: the gap is 0 before "
            "the first step"
        )
    if gap.gap is None or gap.policy is None:
        return
    yield f"  solved without its prompt: {gap.policy} of {gap.gap.n} examples that it teaches"
    yield f"  solved behind its prompt:  {gap.behind}"
    yield f"  gap, paired by example: {gap.gap.signed} points; {verdict(gap)}"


def verdict(gap: FirstGap) -> str:
    """What a gap speaks for; the gain is about linear in it (arXiv 2605.30070, abstract)."""
    if gap.gap is None or not gap.gap.excludes_zero:
        return (
            "none is shown, so there is nothing to learn from it yet: do not train, or look at more"
        )
    if gap.gap.mean < 0:
        return "its prompt does harm: do not train with it"
    return "its prompt helps, and the gain of training is about linear in that"
