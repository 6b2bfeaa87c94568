"""What the template is given: everything counted, cut and put in words, nothing escaped yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefix_rft.report.chart import draw
from prefix_rft.report.curves import Plots, plots
from prefix_rft.report.evaluation import Evaluated, draw_interval, scale_of, share
from prefix_rft.report.groups import categories, text_limit
from prefix_rft.report.load import Read, labels, read
from prefix_rft.report.pictures import shown
from prefix_rft.report.points import window_of
from prefix_rft.report.settings import side_by_side
from prefix_rft.report.text import number
from prefix_rft.runs.metric_names import ORIGIN_WORDS, SPLIT
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.token_texts import run_tokenizer

POINTS, MOST_POINTS, FEWEST_POINTS = 40_000, 300, 20
"""Of all curves together; of one curve at most and at least."""


def context(paths: Sequence[str]) -> dict[str, Any]:
    """Read the runs and make the template's variables.

    Raises:
        UserError: a folder is no run, or a file in it is damaged.
    """
    folders = [RunFolder(Path(p)) for p in paths]
    runs = [
        read(f, label, i) for i, (f, label) in enumerate(zip(folders, labels(folders), strict=True))
    ]
    all_plots = plots([run.series for run in runs])
    evaluations = [e for run in runs for e in run.evaluations]
    limit = text_limit([run.rollouts for run in runs])
    samples = []
    for run in runs:
        tokenizer = run_tokenizer(run.folder.path)
        samples.append(
            (run.label, categories(run.rollouts, tokenizer, limit), notes(run, tokenizer))
        )
    return {
        "title": ", ".join(run.label for run in runs),
        "runs": [summary(run, i) for i, run in enumerate(runs)],
        "evaluations": _evaluations(evaluations),
        **curves(all_plots, runs),
        "samples": samples,
        "language": any(writes(run) for run in runs),
        "pictures": [(run.label, shown(run.folder.path)) for run in runs],
        "recipe": side_by_side([run.recipe for run in runs]),
        "environment": side_by_side([run.environment for run in runs]),
        "several": len(runs) > 1,
    }


def summary(run: Read, colour: int) -> dict[str, Any]:
    """The first lines on a run."""
    method = run.recipe.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    steps = [x for points in run.series[1].values() for x, _ in points]
    trainer = run.recipe.get("trainer")
    seed = trainer.get("seed") if isinstance(trainer, Mapping) else run.recipe.get("seed")
    git = run.environment.get("git")
    commit = None
    if isinstance(git, Mapping) and git.get("commit"):
        commit = str(git["commit"])[:9] + (", changed since" if git.get("dirty") else "")
    facts = {
        "method": name,
        "model": run.recipe.get("model"),
        "training data": run.recipe.get("train_data"),
        "seed": seed,
        "steps": number(max(steps)) if steps else "none yet",
        "rollouts": (number(run.rollouts.rows) if run.rollouts.rows else "none")
        if writes(run)
        else None,
        "device": run.environment.get("device"),
        "date": run.environment.get("date"),
        "commit": commit,
    }
    facts = {key: str(value) for key, value in facts.items() if value is not None}
    return {"label": run.label, "colour": colour, "facts": facts}


def writes(run: Read) -> bool:
    """Whether a run's model writes text; that of ``prefix-rft diffusion`` draws."""
    return run.recipe.get("command") != "diffusion"


def notes(run: Read, tokenizer: object) -> list[str]:
    """What is not there, and why."""
    sentences = []
    hybrid = "prefix" in run.rollouts.lengths
    if not run.series[1]:
        sentences.append("No metrics yet: the run has not logged a step.")
    if not writes(run):
        sentences.append("Its samples are pictures.")
    elif not run.rollouts.rows:
        sentences.append(
            "No rollouts: the method samples none (SFT and its kin), the run has not got there, "
            "or log_rollouts was off."
        )
    elif tokenizer is None:
        sentences.append(
            "No tokenizer in the run folder (model/tokenizer.json): prefix tokens are counted, "
            "but not marked in the text."
        )
    elif hybrid and not run.rollouts.kept_known:
        sentences.append(
            "Which prefix tokens were kept by their entropy is not recorded for this run."
        )
    return sentences


def _evaluations(evaluations: Sequence[Evaluated]) -> list[dict[str, Any]]:
    if not evaluations:
        return []
    scale = scale_of([e.numbers for e in evaluations])
    return [
        {
            "run": e.run,
            "colour": e.colour,
            "stage": e.stage if n.step is None else f"{e.stage}, step {n.step:,}",
            "chosen": n.step is not None,
            "mean": share(n.mean, scale),
            "interval": f"{share(n.low, scale)} to {share(n.high, scale)}",
            "picture": draw_interval((n.low, n.mean, n.high), scale, e.colour),
            "samples": f"{n.problems:,} \N{MULTIPLICATION SIGN} {n.samples}",
            "truncated": share(n.truncated),
            "no_answer": share(n.no_answer),
        }
        for e in evaluations
        for n in [e.numbers]
    ]


def curves(all_plots: Plots, runs: Sequence[Read]) -> dict[str, Any]:
    """The charts, how they were smoothed, and the metrics that need none."""
    charts = [chart for section in all_plots.sections.values() for chart in section]
    lines = [line for chart in charts for line in chart.lines]
    limit = max(FEWEST_POINTS, min(MOST_POINTS, POINTS // max(1, len(lines))))
    steps = [x for line in lines for x, _ in line.points] or [0.0]
    window = window_of(min(steps), max(steps))
    longest = max((len(line.points) for line in lines), default=1)
    numbers = {id(chart): i for i, chart in enumerate(charts)}
    dashes = dict.fromkeys(x.dash for c in all_plots.sections.get(SPLIT, []) for x in c.lines)
    return {
        "sections": {
            heading: [(c, draw(c, numbers[id(c)], limit, window)) for c in section]
            for heading, section in all_plots.sections.items()
        },
        "dashes": {d: words for d, words in ORIGIN_WORDS.items() if d in dashes},
        "bucket": -(-longest // limit),
        "window": window,
        "constant": [(n, [number(v) for v in values]) for n, values in all_plots.constant],
        "single": [(n, [number(v) for v in values]) for n, values in all_plots.single],
        "labels": [run.label for run in runs],
    }
