"""What the evaluations along the way of a run would cost."""

from __future__ import annotations

from rich.console import Console

from prefix_rft.checks.findings import Findings
from prefix_rft.engines.setup import Setup
from prefix_rft.support.console import say


def show_evaluations(
    console: Console, setup: Setup, steps: int, findings: Findings, rows: int
) -> None:
    """How much is sampled in the evaluations along the way.

    Args:
        console: the console to print on.
        setup: the resolved recipe, with ``eval_every``.
        steps: the optimizer steps of the run.
        findings: hears of evaluations that are never reached.
        rows: the number of held-out rows.
    """
    recipe = setup.recipe
    every = recipe.eval_every or 1
    if every > steps:
        findings.add(f"eval_every is {every}, and the run has {steps} steps", "give a smaller one")
        return
    k = recipe.eval_samples if setup.engine.RUNS_ITSELF else recipe.eval_every_samples or 1
    times, problems = steps // every, min(rows, recipe.eval_problems or rows)
    evaluations = "evaluations" if times > 1 else "evaluation"
    words = f"{times} {evaluations} along the way x {problems} problems x {k} = "
    trained = (
        f", beside {steps * setup.plan.rows:,} rows of training" if setup.method.samples else ""
    )
    say(console, f"{words}{times * problems * k:,} samples{trained}")
