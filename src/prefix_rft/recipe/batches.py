"""How the rows of an optimizer step are split over processes and forwards."""

from __future__ import annotations

from dataclasses import dataclass

from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of an optimizer step are split."""

    prompts: int
    generations: int
    micro_batch_size: int
    processes: int

    @property
    def rows(self) -> int:
        """Rows of one optimizer step over all processes."""
        return self.prompts * self.generations

    @property
    def micro_batches(self) -> int:
        """Forwards of one optimizer step on one process."""
        return self.rows // (self.micro_batch_size * self.processes)

    def __str__(self) -> str:
        batches = "micro-batches" if self.micro_batches > 1 else "micro-batch"
        return (
            f"{self.prompts} prompts x {self.generations} rows = {self.rows} rows a step, in "
            f"{self.micro_batches} {batches} of {self.micro_batch_size} on {self.processes} "
            f"process{'es' if self.processes > 1 else ''}"
        )


def plan_batches(
    prompts: int, generations: int, micro_batch_size: int | None, processes: int = 1
) -> BatchPlan:
    """Split the rows of a step; by default into the largest micro-batches of at most 32 rows.

    Raises:
        UserError: the numbers do not divide.
    """
    rows = prompts * generations
    if rows % processes:
        raise UserError(
            f"{prompts} prompts x {generations} rows = {rows} do not divide over {processes} "
            "processes: change prompts_per_step"
        )
    local = rows // processes
    if micro_batch_size is None:
        micro_batch_size = max(n for n in range(1, min(32, local) + 1) if local % n == 0)
    if local % micro_batch_size:
        raise UserError(
            f"{prompts} prompts x {generations} rows on {processes} process(es) = {local} rows do "
            f"not divide into micro-batches of {micro_batch_size}: change micro_batch_size or "
            "prompts_per_step"
        )
    return BatchPlan(prompts, generations, micro_batch_size, processes)
