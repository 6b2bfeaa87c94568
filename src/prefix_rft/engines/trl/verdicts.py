"""What the graders said about the rows of a generation: exclusion, metrics, leaking prefixes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.rewards import Graded, grade_texts
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import CORRECT, STATUSES
from prefix_rft.support.phases import Phases

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


ROW_DUMP = "All reward functions returned None for the following kwargs"
"""TRL's words before it prints a whole row; a prefix with the process's rank may stand in front."""


@contextmanager
def rows_unprinted() -> Iterator[None]:
    """Keep TRL from printing a row that has no reward; verdicts and rollouts say it shorter."""
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.partition(".")[0] == "trl"
    ]
    for logger in loggers:
        logger.addFilter(_is_no_dump)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_dump)


def _is_no_dump(record: logging.LogRecord) -> bool:
    return ROW_DUMP not in record.getMessage()


@contextmanager
def telling(graders: Sequence[Any], phases: Phases) -> Iterator[None]:
    """Within the context, those that grade one by one tell the phases how far they are."""
    telling = [(g, g.tick) for g in graders if isinstance(g, Graded)]
    for grader, _ in telling:
        grader.tick = phases.at
    try:
        yield
    finally:
        for grader, before in telling:
            grader.tick = before


def pooled(reward_NF: Tensor, weight_F: Tensor, excluded_N: Tensor) -> tuple[Tensor, Tensor]:
    """The reward of each row from those of several functions, and which rows have none.

    NaN is TRL's mark for "does not apply": the others decide, unless none is left. A row that a
    grader could not judge has no reward at all, whatever the others say.

    Args:
        reward_NF: rewards by row and function.
        weight_F: of the functions.
        excluded_N: bool, rows that a grader could not judge.

    Returns:
        Rewards, shape (N,), NaN where there is none; and these rows as a bool mask.
    """
    reward_N = (reward_NF * weight_F.to(reward_NF)).nansum(1)
    ungraded_N = reward_NF.isnan().all(1) | excluded_N
    reward_N[ungraded_N] = torch.nan
    return reward_N, ungraded_N


def excluded(trainer: PrefixRFTTrainer, rows: int) -> Tensor:
    """Rows of all processes that some grader could not judge; ``rows`` are this process's own."""
    own = torch.zeros(rows, dtype=torch.bool, device=trainer.accelerator.device)
    for grader in trainer.graders:
        own |= torch.tensor([v.excluded for v in grader.verdicts], device=own.device)
    return trainer.accelerator.gather(own)


def log_verdicts(trainer: PrefixRFTTrainer, ungraded_N: Tensor) -> None:
    """Log the share of each status by grader, and of the rows that have no reward."""
    metrics = trainer.metrics
    metrics["rewards/ungraded"].append(ungraded_N.float().mean().item())
    for grader in trainer.graders:
        codes = [STATUSES.index(v.status) for v in grader.verdicts]
        code_N = trainer.accelerator.gather(torch.tensor(codes, device=ungraded_N.device))
        for code, status in enumerate(STATUSES):
            share = (code_N == code).float().mean().item()
            metrics[f"verdicts/{name_of(grader)}/{status}"].append(share)


def log_prefix_leak(
    trainer: PrefixRFTTrainer, inputs: Sequence[dict[str, Any]], plans: Sequence[RowPlan]
) -> None:
    """Log the share of hybrid rows whose prefix alone is correct to the first grader."""
    hybrid = [(row, plan) for row, plan in zip(inputs, plans, strict=True) if plan.hybrid]
    leaks = 0
    if hybrid:
        ids = [list(plan.prefix) for _, plan in hybrid]
        texts = trainer.renderer.completions(ids)
        verdicts = grade_texts(trainer.graders[0], [row for row, _ in hybrid], texts, ids)
        leaks = sum(v.status == CORRECT for v in verdicts)
    counts = torch.tensor([leaks, len(hybrid)], device=trainer.accelerator.device)
    leaks, rows = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    if rows:
        trainer.metrics["prefix/leak"].append(leaks / rows)
