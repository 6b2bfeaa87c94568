"""One optimizer step: what is fixed when it begins, and what its micro-batches add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefix_rft.core import Batch, Method, Targets, prepare, share_of_loss, statistics
from prefix_rft.core.statistics import teacher_distances
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.teaching import Teaching
from prefix_rft.engines.trl.scorer import TokenScores
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.update.contrast import contrasted
from prefix_rft.engines.trl.update.correction import Correction
from prefix_rft.engines.trl.update.distances import Distances, live_streams
from prefix_rft.engines.trl.update.gradient_shares import GradientShares
from prefix_rft.engines.trl.update.micro_batches import acting, planned
from prefix_rft.engines.trl.update.selection import selected
from prefix_rft.engines.trl.update.stats import means, tails
from prefix_rft.engines.trl.window import Rows, few, join, to_batch


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through one forward and backward.

    Attributes:
        places: their places in the step.
        rows: TRL's tensors of them.
        batch: the same rows as core has them, as wide as their tokens.
        targets: their targets.
        wanted_BT: bool, the tokens to score: those that are trained, and those of which only
            metrics are to know.
        entropy: whether their entropies are wanted, too.
    """

    places: Tensor
    rows: Rows
    batch: Batch
    targets: Targets
    wanted_BT: Tensor
    entropy: bool


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
        fresh: bool,
        everything: bool,
        most: float,
        teaching: Teaching | None,
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
            fresh: no update has moved the policy since it sampled the rows.
            everything: rows and tokens without gradient go through forward and backward as well.
            most: the largest correction of a token that our sampler drew; 0 for none.
            teaching: has the method's teachers score the rows; None where it has none.
        """
        rows = join(generation[window])
        heard: dict[str, float] = {}
        if teaching is not None:
            told, heard = teaching.hear(rows, moment, state.followed)
            rows |= told
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
            followed=state.followed,
        )
        acts_BT = acting(targets)
        trained_B = acts_BT.any(1) | everything
        packed = forward.scorer.why_whole is None
        plan = planned(rows, trained_B, window.stop - window.start, packed, processes)
        due = shares if shares is not None and shares.due(moment.step) else None
        told = fresh and "policy_logp" in rows
        known = (rows["policy_logp"], rows["policy_entropy"]) if told else None
        scored_BT = batch.response_mask_BT if everything else acts_BT
        correction = Correction(rows["policy_logp"], most) if most else None
        metrics |= heard
        step = cls(method, rows, batch, targets, plan, scored_BT, metrics, due, known, correction)
        step._learn(forward, processes)
        step._expect_divergences()
        return step

    def __init__(
        self,
        method: Method,
        rows: Rows,
        batch: Batch,
        targets: Targets,
        plan: Sequence[Tensor | None],
        scored_BT: Tensor,
        metrics: dict[str, float],
        shares: GradientShares | None,
        known: tuple[Tensor, Tensor] | None,
        correction: Correction | None,
    ) -> None:
        self._correction = correction
        self.method, self.rows, self.batch, self.targets = method, rows, batch, targets
        self._plan, self._begun, self._shares = plan, metrics, shares
        none_BT = torch.full(batch.tokens_BT.shape, torch.nan, device=batch.tokens_BT.device)
        self._sampler_BT, entropy_BT = (none_BT, none_BT) if known is None else known
        self._logp_BT, self._entropy_BT = self._sampler_BT.clone(), entropy_BT.clone()
        self._scored_BT = scored_BT

    @property
    def _unknown_BT(self) -> Tensor:
        """Bool, the tokens of which metrics do not know everything yet."""
        unknown_BT = self._logp_BT.isnan() | self._entropy_BT.isnan()
        return self.batch.response_mask_BT & unknown_BT

    def _learn(self, forward: Forward, processes: Processes) -> None:
        """Score what metrics are to know and no micro-batch will score."""
        unknown_BT = self._unknown_BT
        for places in self._plan:
            if places is not None:
                unknown_BT[places] = False
        if not int(processes.sum(unknown_BT.any().long())):
            return
        logp_BT, entropy_BT, *_ = forward.of(self.rows, unknown_BT, True)
        assert entropy_BT is not None  # noqa: S101  (asked for)
        self._logp_BT = logp_BT.where(unknown_BT, self._logp_BT)
        self._entropy_BT = entropy_BT.where(unknown_BT, self._entropy_BT)

    def _expect_divergences(self) -> None:
        """Make room for what teachers of divergences say, on all processes alike."""
        self._divergence_SBT = self._said_MBT = None
        if live_streams(self.method, self.targets):
            shape, device = self.batch.tokens_BT.shape, self.batch.tokens_BT.device
            streams, teachers = len(self.method.streams), len(self.method.teachers)
            self._divergence_SBT = torch.zeros(streams, *shape, device=device)
            self._said_MBT = torch.full((teachers, *shape), torch.nan, device=device)

    def micro_batch(self, i: int) -> MicroBatch | None:
        """The rows of one of the step's micro-batches; None where nothing is left to run."""
        places = self._plan[i]
        if places is None:
            return None
        unknown_BT = self._unknown_BT[places]
        wanted_BT = self._scored_BT[places] | unknown_BT
        wanted_BT[:, 0] |= ~wanted_BT.any(1)  # a row that only fills the micro-batch up
        width = int(wanted_BT.any(0).nonzero()[-1]) + 1
        batch, targets = self.batch.part(places, width), self.targets.part(places, width)
        entropy = self.method.reads_entropy or bool(unknown_BT.any())
        rows = few(self.rows, places)
        return MicroBatch(places, rows, batch, targets, wanted_BT[:, :width], entropy)

    def loss(self, part: MicroBatch, scores: TokenScores, distances: Distances | None) -> Tensor:
        """A micro-batch's share of the step's loss, with gradient; its scores are kept for metrics.

        Args:
            part: the micro-batch.
            scores: what the present policy says of its wanted tokens, with gradient.
            distances: its divergence streams; ``scores.beside`` is what they made.
        """
        logp_BT, entropy_BT = scores.logp_BT, scores.entropy_BT
        row, column = part.wanted_BT.nonzero().T
        for kept_BT, now_BT in ((self._logp_BT, logp_BT), (self._entropy_BT, entropy_BT)):
            if now_BT is not None:
                kept_BT[part.places[row], column] = now_BT.detach().float()[row, column]
        batch = part.batch
        if distances is not None:
            batch = self._with_divergences(batch, part, distances, scores.beside)
        if self._correction is not None:
            batch, _ = self._correction.of(batch, logp_BT, part.places)
        if self._shares is not None:
            self._shares.add(batch, part.targets, logp_BT, entropy_BT)
        return share_of_loss(self.method, batch, logp_BT, entropy_BT, part.targets)

    def _with_divergences(
        self, batch: Batch, part: MicroBatch, distances: Distances, found: Sequence[Tensor]
    ) -> Batch:
        """The batch of a micro-batch with its divergences, which are kept for metrics."""
        divergence_SBT, said_MBT = distances.placed(found), distances.said()
        width = part.wanted_BT.size(1)
        for kept, now in ((self._divergence_SBT, divergence_SBT), (self._said_MBT, said_MBT)):
            assert kept is not None  # noqa: S101  (a stream is live)
            kept[:, part.places, :width] = now.detach().float()
        return replace(batch, divergence_SBT=divergence_SBT)

    def _corrections(self, processes: Processes) -> dict[str, float]:
        """Mean, least and largest weight of the trained tokens that our sampler drew."""
        if self._correction is None:
            return {}
        batch, drawn_BT = self._correction.of(self.batch, self._logp_BT)
        assert batch.weight_BT is not None  # noqa: S101  (just made)
        weight_M = batch.weight_BT[acting(self.targets) & drawn_BT].double()
        own = torch.stack([weight_M.sum(), weight_M.new_tensor(len(weight_M))])
        total, count = processes.sum(own).tolist()
        if not count:
            return {}
        none_1 = weight_M.new_full((1,), -torch.inf)  # where this process has none of them
        ends_2 = torch.stack([torch.cat([x, none_1]).max() for x in (-weight_M, weight_M)])
        least, most = processes.gather(ends_2[None]).amax(0).tolist()
        name = "sampling/importance_sampling_ratio"
        found = {"mean": total / count, "min": -least, "max": most}
        return {f"{name}/{k}": v for k, v in found.items()}

    def _distances(self, processes: Processes) -> dict[str, float]:
        """How far the sampler's log-probs are from those of the update, at the trained tokens."""
        both_BT = acting(self.targets) & ~self._sampler_BT.isnan()
        off_M = (self._sampler_BT - self._logp_BT)[both_BT].abs().double()
        own = torch.stack([off_M.sum(), off_M.new_tensor(len(off_M))])
        total, count = processes.sum(own).tolist()
        largest = processes.gather(off_M.max()[None] if len(off_M) else off_M.new_zeros(1)).max()
        if not count:
            return {}
        name = "sampling/sampling_logp_difference"
        return {f"{name}/mean": total / count, f"{name}/max": largest.item()}

    def end(self, processes: Processes, tokens: TokenCounts) -> dict[str, float]:
        """Metrics of the whole step over all processes.

        Args:
            processes: the processes that share the step.
            tokens: counted since the step before; they begin anew.
        """
        batch = self.batch
        if self._divergence_SBT is not None:
            scored_MBT, said_MBT = batch.teacher_logp_MBT, self._said_MBT
            if scored_MBT is not None and said_MBT is not None:
                said_MBT = said_MBT.where(~said_MBT.isnan(), scored_MBT)
            said = {"teacher_logp_MBT": said_MBT, "divergence_SBT": self._divergence_SBT}
            batch = replace(batch, **said)
        stats = statistics(self.method, batch, self._logp_BT, self._entropy_BT, self.targets)
        metrics = self._begun | means(stats, processes) | tokens.take(processes)
        metrics |= self._distances(processes) | self._corrections(processes)
        far = tails(teacher_distances(self.method, batch, self._logp_BT), processes)
        metrics |= {f"{name}/gap_p99": value for name, value in far.items()}
        return metrics if self._shares is None else metrics | self._shares.take(processes)
