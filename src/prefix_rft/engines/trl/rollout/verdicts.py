"""What reward functions and graders said about the rows of a call: rewards, verdicts, metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefix_rft.engines.trl.processes import Processes
from prefix_rft.rewards import Graded
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import STATUSES, Verdict
from prefix_rft.support.phases import Phases

Verdicts = Sequence[tuple[str, Sequence[Verdict]]]
"""The name of each grader, and what it said of each row of this process."""

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
        weight_F: the weights of the functions.
        excluded_N: bool, rows that a grader could not judge.

    Returns:
        Rewards, shape (N,), NaN where there is none; and these rows as a bool mask.
    """
    reward_N = (reward_NF * weight_F.to(reward_NF)).nansum(1)
    ungraded_N = reward_NF.isnan().all(1) | excluded_N
    reward_N[ungraded_N] = torch.nan
    return reward_N, ungraded_N


@dataclass(frozen=True)
class Rewards:
    """What reward functions and graders have said in one call of TRL's.

    Attributes:
        reward_N: the rewards of the rows of all processes, NaN where there is none.
        ungraded_N: bool, these rows.
        verdicts: the verdicts on this process's rows.
    """

    reward_N: Tensor
    ungraded_N: Tensor
    verdicts: Verdicts

    @classmethod
    def of(
        cls,
        reward_NF: Tensor,
        weight_F: Tensor,
        graders: Sequence[Any],
        rows: int,
        processes: Processes,
    ) -> Rewards:
        """Right after the call, for a grader's verdicts are those of its last one.

        Args:
            reward_NF: rewards of the rows of all processes by function.
            weight_F: the weights of the functions.
            graders: those of the functions that give verdicts.
            rows: the number of rows that this process holds.
            processes: the run's processes.
        """
        verdicts = [(name_of(g), list(g.verdicts)) for g in graders]
        excluded = torch.zeros(rows, dtype=torch.bool, device=processes.device)
        for _, said in verdicts:
            excluded |= torch.tensor([v.excluded for v in said], device=excluded.device)
        return cls(*pooled(reward_NF, weight_F, processes.gather(excluded)), verdicts)

    def metrics(self, processes: Processes) -> list[tuple[str, float]]:
        """The share of rows that have no reward, and that of each status by grader.

        Two graders of one name have a number each.
        """
        metrics = [("rewards/ungraded", self.ungraded_N.float().mean().item())]
        for name, said in self.verdicts:
            codes = [STATUSES.index(v.status) for v in said]
            code_N = processes.gather(torch.tensor(codes, device=self.ungraded_N.device))
            for code, status in enumerate(STATUSES):
                share = (code_N == code).float().mean().item()
                metrics.append((f"verdicts/{name}/{status}", share))
        return metrics
