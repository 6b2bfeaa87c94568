"""One optimizer step: what is fixed when it begins, and what its micro-batches add up to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prefix_rft.core import Batch, Method, Targets, loss, prepare
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.update.contrast import contrasted
from prefix_rft.engines.trl.update.gradient_shares import GradientShares
from prefix_rft.engines.trl.update.selection import selected
from prefix_rft.engines.trl.update.stats import StepStats
from prefix_rft.engines.trl.update.token_counts import TokenCounts
from prefix_rft.engines.trl.window import Rows, join, to_batch


class OptimizerStep:
    """The step that has begun, over its micro-batches and all processes.

    Attributes:
        method: the method whose loss it is.
        rows: TRL's tensors of this process's rows.
        batch: the same rows as core has them.
        targets: advantages, selected tokens and normalisers of the step.
    """

    @classmethod
    def begin(
        cls,
        method: Method,
        generation: Sequence[Rows],
        window: slice,
        moment: RunPoint,
        state: MethodState,
        forward: Forward,
        processes: Processes,
        shares: GradientShares | None,
    ) -> OptimizerStep:
        """Fix targets and normalisers of the step that begins now.

        Args:
            method: the method whose loss it is.
            generation: the micro-batches of the generation on this process.
            window: those of this step.
            moment: the point of the run.
            state: what the method remembers; its contrast adds to it.
            forward: the forward of the present policy.
            processes: the processes that share the step.
            shares: measures the gradient of each source, in the steps in which it is due.
        """
        rows = join(generation[window])
        batch = to_batch(rows)
        advantage_SB, metrics = contrasted(method, rows, state, forward, processes)
        targets = prepare(
            method,
            batch,
            step=moment.step,
            total_steps=moment.total_steps,
            advantage_SB=advantage_SB,
            keep_BT=selected(method, generation, window, moment, forward, processes),
            all_sum=processes.sum,
        )
        due = shares if shares is not None and shares.due(moment.step) else None
        return cls(method, rows, batch, targets, metrics, due)

    def __init__(
        self,
        method: Method,
        rows: Rows,
        batch: Batch,
        targets: Targets,
        metrics: dict[str, float],
        shares: GradientShares | None,
    ) -> None:
        self.method, self.rows, self.batch, self.targets = method, rows, batch, targets
        self._begun, self._shares, self._stats = metrics, shares, StepStats()

    def part(self, rows: slice, width: int) -> tuple[Batch, Targets]:
        """Some rows of the step and their targets, for its first ``width`` positions."""
        return self.batch.part(rows, width), self.targets.part(rows, width)

    def loss(
        self, part: tuple[Batch, Targets], logp_BT: Tensor, entropy_BT: Tensor | None
    ) -> Tensor:
        """A part's share of the step's loss, with gradient; its metrics are added up.

        Args:
            part: the micro-batch's part, from :meth:`part`.
            logp_BT: log-probs of the part's tokens under the present policy, with gradient.
            entropy_BT: entropies in nats at the same positions.
        """
        batch, targets = part
        out = loss(self.method, batch, logp_BT, entropy_BT, targets=targets)
        self._stats.add(out.stats)
        if self._shares is not None:
            self._shares.add(batch, targets, logp_BT, entropy_BT)
        return out.loss

    def end(self, processes: Processes, tokens: TokenCounts) -> dict[str, float]:
        """Metrics of the whole step over all processes.

        Args:
            processes: the processes that share the step.
            tokens: counted since the step before; they begin anew.
        """
        metrics = self._begun | self._stats.take(processes) | tokens.take(processes)
        return metrics if self._shares is None else metrics | self._shares.take(processes)
