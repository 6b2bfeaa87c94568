"""How many tokens an optimizer step has cost, so that methods can be compared at equal compute.

Each count is of all processes, padding aside. It belongs to the optimizer step in which the work
was done: sampling counts in the step that begins a generation and is 0 in the others. Every step
logs every count, zeros too. TRL logs means over the steps since the last line, so a logged value
times the number of steps it spans is their true total.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.processes import Processes

KINDS = ("sampled", "prefilled", "forward", "trained")
TEACHER = "teacher"


class TokenCounts:
    """Tokens since the last optimizer step on this process.

    - ``sampled``: drawn, in every attempt, EOS included. Also what a backend draws beyond a
      row's budget, or for a row that only fills a request up, and that is thrown away.
    - ``prefilled``: given to the sampler: the distinct prompts of a process in one attempt, and
      the prefix of each row. Backends that prefill a prompt once per row count the same.
    - ``forward``: in forwards of the trainer without gradient: log-probs of the old and the
      reference policy, and for contrasts; entropies of prefixes, and what metrics need of tokens
      that nothing else has scored. Reward models do not count.
    - ``trained``: in forward and backward. The backward passes of ``gradient_shares_every`` do not
      count.
    - ``teacher``: those of ``forward`` that a teacher has read, of a method that has teachers.

    Of these, what is computed counts: where rows are packed, a prompt that rows share once and
    nothing behind the last token that is needed; where they are whole, prompts and completions.

    Args:
        device: where counts are added up.
        teachers: the method has teachers.
    """

    def __init__(self, device: torch.device, teachers: bool = False) -> None:
        self.device = device
        self.kinds = (*KINDS, TEACHER) if teachers else KINDS
        self._read_by_teacher = False
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, int | Tensor] = dict.fromkeys(self.kinds, 0)

    @contextmanager
    def by_teacher(self) -> Iterator[None]:
        """What is scored inside this context is read by a teacher."""
        self._read_by_teacher = True
        try:
            yield
        finally:
            self._read_by_teacher = False

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[RowPlan],
        sampled: Sequence[Sequence[int]],
        sent: Sequence[int],
    ) -> None:
        """Count one attempt at a generation, for which the rows at ``sent`` were sent."""
        self.sums["sampled"] += sum(map(len, sampled))
        self.sums["prefilled"] += sum(map(len, {tuple(prompts[i]) for i in sent}))
        self.sums["prefilled"] += sum(len(p.prefix) for p in plans if not p.done)

    def scored(self, tokens: int | Tensor) -> None:
        """Count what goes through the model, by whether there is a gradient."""
        self.count("trained" if torch.is_grad_enabled() else "forward", tokens)
        if self._read_by_teacher:
            self.count(TEACHER, tokens)

    def count(self, kind: str, tokens: int | Tensor) -> None:
        """Add a number of tokens; nothing waits for the device."""
        self.sums[kind] = self.sums[kind] + tokens

    def take(self, processes: Processes) -> dict[str, float]:
        """The counts of all processes since the last call, by the names of their metrics."""
        own_counts = [torch.as_tensor(n, device=self.device).long() for n in self.sums.values()]
        self._clear()
        total = processes.sum(torch.stack(own_counts)).tolist()
        return {f"tokens/{k}": float(n) for k, n in zip(self.kinds, total, strict=True)}
