"""How far a start model is from its rewards: the one measurement that advice rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefix_rft.data.pictures import IMAGE, IMAGES
from prefix_rft.engines.models import load_model
from prefix_rft.engines.setup import Setup
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.evaluation.expected import Flat, flat_groups, success
from prefix_rft.evaluation.folder import samples_file
from prefix_rft.evaluation.likelihood import Likelihood, likelihood
from prefix_rft.evaluation.run import EvalPlan, read_problems, run_eval
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import Problem
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.rewards import visible
from prefix_rft.support.errors import UserError

ROLE, TRAIN = "model", "train"


@dataclass(frozen=True)
class MeasuredStart:
    """What was measured of a start model on rows that it is to train on, without any prefix.

    Attributes:
        rows: the rows that were sampled.
        samples: the number of samples of each row.
        with_demonstration: those of the rows that have a demonstration.
        success: the share of samples that are correct.
        step_rows: rows of a step of the recipe.
        flat: groups without an advantage, as expected; None where samples are fewer than a group.
        likelihood: how likely their demonstrations are; None where there are none.
    """

    rows: int
    samples: int
    with_demonstration: int
    success: Estimate
    step_rows: int
    flat: Flat | None
    likelihood: Likelihood | None

    @property
    def solved(self) -> Estimate:
        """lambda: the solved rows that a step can expect, ``step_rows * success``."""
        s, n = self.success, self.step_rows
        return Estimate(n * s.mean, n * s.low, n * s.high, s.n)


def train_rows(setup: Setup, limit: int | None) -> EvalSet:
    """The rows that a recipe trains on, as problems for its first reward.

    Raises:
        UserError: the recipe has no reward.
    """
    own = setup.recipe
    if own.reward is None:
        raise UserError("the recipe has no reward, so nothing says which answers are right")
    return EvalSet(
        TRAIN,
        own.train_data,
        own.reward,
        columns=own.columns,
        system_prompt=own.system_prompt,
        limit=limit,
        folder=own.folder,
    )


def sample_train_rows(
    setup: Setup,
    model: str,
    rows: EvalSet,
    request: Request,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> list[Problem]:
    """Sample a model on rows that it is to train on, never from a prefix; what is there is kept.

    Args:
        setup: the recipe, which says how long answers are and how prompts are rendered.
        model: the model's folder or name.
        rows: the rows, from :func:`train_rows`.
        request: how to sample; length and template arguments are the recipe's.
        folder: where samples are put.
        progress: called with a job's name, the rows done, and those to do.

    Raises:
        UserError: nothing can be sampled or graded, or the folder holds other samples.
    """
    args = setup.args
    asked = Request(
        request.samples,
        request.temperature,
        args.max_completion_length,
        request.seed,
        request.batch_size,
        getattr(args, "chat_template_kwargs", None),
    )
    run_eval(EvalPlan({ROLE: model}, [rows], [asked.temperature], asked), folder, progress)
    return read_problems(samples_file(folder, ROLE, rows, asked.temperature))


def measure_start(
    setup: Setup,
    model: str,
    limit: int | None,
    request: Request,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> MeasuredStart:
    """Measure a start model for a recipe whose method samples.

    Args:
        setup: the resolved recipe, or the stage of it that samples.
        model: the model's folder or name.
        limit: the first rows only.
        request: how to sample; the temperature is the recipe's, too.
        folder: where samples are put.
        progress: called with a job's name, the rows done, and those to do.

    Raises:
        UserError: see :func:`sample_train_rows`.
    """
    eval_set, args = train_rows(setup, limit), setup.args
    request = replace(request, temperature=args.temperature)
    problems = sample_train_rows(setup, model, eval_set, request, folder, progress)
    rows = eval_set.rows()
    kept = ["prompt", "demonstration", IMAGE, IMAGES]
    plain: Any = list(rows.select_columns([n for n in visible(rows.column_names) if n in kept]))
    shown = [row for row in plain if row.get("demonstration")]
    graded = [len(p.graded) for p in problems]
    correct = [sum(s.correct for s in p.graded) for p in problems]
    found = None
    if shown:
        loaded, tokenizer = load_model(model, dtype="auto")
        template = getattr(args, "chat_template_kwargs", None)
        found = likelihood(loaded, tokenizer, shown, template)
    return MeasuredStart(
        rows=len(problems),
        samples=request.samples,
        with_demonstration=len(shown),
        success=success(correct, graded),
        step_rows=setup.plan.rows,
        flat=flat_groups(correct, graded, setup.plan.generations),
        likelihood=found,
    )
