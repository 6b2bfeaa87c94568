"""What teachers say of the rows of a generation: prompts of their own, the same completions.

Of teacher 0 the rows have the columns ``teacher0_ids`` and ``teacher0_mask`` (its prompt, padded on
the left), ``teacher0_taught`` and, once it has spoken, ``teacher0_logp``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Method
from prefix_rft.core.targets import coefficients
from prefix_rft.core.teacher import FROM_GROUPS, Teacher, phrases, quotes
from prefix_rft.engines.contexts import Contexts, Peer
from prefix_rft.engines.kept_weights import KeptWeights
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.states import States
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation
from prefix_rft.engines.trl.window import Rows


class Teaching:
    """Has a method's teachers score rows, as few times as can be.

    Args:
        method: the method with its teachers.
        contexts: writes their prompts.
        processes: the run's processes.
        forward: the forward of the policy.
        kept: weights that are kept for a teacher, by its name.
        models: the forwards of teachers that are other models, by name.
        updates: optimizer steps that a generation is used for.
    """

    def __init__(
        self,
        method: Method,
        contexts: Contexts,
        processes: Processes,
        forward: Forward,
        kept: Mapping[str, KeptWeights],
        models: Mapping[str, Forward],
        updates: int,
    ) -> None:
        self.method, self.contexts, self.processes = method, contexts, processes
        self.forward, self.kept, self.models = forward, kept, models
        self.updates = updates

    def attach(
        self, generation: Generation, moment: RunPoint, followed: Mapping[str, Sequence[float]]
    ) -> tuple[Rows, dict[str, float]]:
        """The columns of the teachers that are heard in the steps of a generation, and metrics.

        Args:
            generation: the rows.
            moment: the point of the run at which they were made.
            followed: what coefficients remember of the metrics that they follow.
        """
        columns: Rows = {}
        metrics: dict[str, float] = {}
        heard = self._heard(moment, range(moment.step, moment.step + self.updates), followed)
        if not heard:
            return columns, metrics
        groups = self._peers(generation)
        for m, teacher in enumerate(self.method.teachers):
            if teacher.name not in heard:
                columns |= self._columns(m, [None] * len(generation.plans))
                continue
            own = [
                self.contexts.prompt(teacher, example, plan, moment, groups.get(plan.group, ()))
                for example, plan in zip(generation.inputs, generation.plans, strict=True)
            ]
            columns |= self._columns(m, [ids for ids, _ in own])
            long = torch.tensor([float(long) for _, long in own], device=self.processes.device)
            metrics[f"{teacher.name}/too_long"] = self.processes.gather(long).mean().item()
            metrics |= self._leak(teacher, generation)
            if not teacher.moves and self._weighs(teacher):
                rows = {**generation.sampled.rows, **columns}
                columns[f"teacher{m}_logp"] = self._said(m, teacher, rows)
        return columns, metrics

    def hear(
        self, rows: Rows, moment: RunPoint, followed: Mapping[str, Sequence[float]]
    ) -> tuple[Rows, dict[str, float]]:
        """What the teachers that move say of the rows of an optimizer step, and coefficients.

        Args:
            rows: TRL's tensors of this process's rows, with what :meth:`attach` gave them.
            moment: the point of the run.
            followed: what coefficients remember of the metrics that they follow.
        """
        heard = self._heard(moment, [moment.step], followed)
        columns: Rows = {}
        for m, teacher in enumerate(self.method.teachers):
            if teacher.moves and teacher.name in heard and self._weighs(teacher):
                columns[f"teacher{m}_logp"] = self._said(m, teacher, rows)
        values = coefficients(self.method, moment.step, moment.total_steps, followed)
        told = zip(self.method.streams, values, strict=True)
        return columns, {f"{s.name}/coefficient": c for s, c in told if s.teacher}

    def states(
        self, m: int, teacher: Teacher, rows: Rows, wanted_BT: Tensor
    ) -> tuple[Tensor, States]:
        """Log-probs of some tokens under a teacher, 0 elsewhere, and its states before them.

        Args:
            m: the teacher's place.
            teacher: the teacher.
            rows: TRL's tensors of a micro-batch, with what :meth:`attach` gave them.
            wanted_BT: bool, the tokens.
        """
        # The policy's backward reads the teacher's head when the policy has its own again.
        copy = teacher.name in self.kept
        with self._reading(teacher):
            return self._forward(teacher).states(self._asked(m, rows), wanted_BT, copy)

    def _weighs(self, teacher: Teacher) -> bool:
        """Whether a weight reads the teacher's log-probs of sampled tokens."""
        return any(
            s.teacher == teacher.name and s.weight is not None and s.weight.teacher
            for s in self.method.streams
        )

    def _heard(
        self, moment: RunPoint, steps: Sequence[int], followed: Mapping[str, Sequence[float]]
    ) -> set[str]:
        """The teachers that some stream reads in one of these steps, with a coefficient."""
        method, total = self.method, moment.total_steps
        return {
            stream.teacher
            for step in steps
            for stream, c in zip(
                method.streams, coefficients(method, step, total, followed), strict=True
            )
            if stream.teacher and c != 0.0
        }

    def _peers(self, generation: Generation) -> dict[int, list[Peer]]:
        """The rows of each group, of all processes, where a teacher is shown some."""
        if not any(t.shown in FROM_GROUPS for t in self.method.teachers):
            return {}
        rows, plans = generation.sampled.rows, generation.plans
        own = self.processes.own(len(plans))
        found = []
        for i, (plan, reward) in enumerate(
            zip(plans, generation.sampled.reward_N[own].tolist(), strict=True)
        ):
            if plan.filler or plan.whole:
                continue
            ids = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
            above = reward > self.method.groups.solved_above
            solved = None if math.isnan(reward) else above
            found.append(Peer(plan.group, plan.row, solved, tuple(ids)))
        groups: dict[int, list[Peer]] = {}
        for peer in sorted(self.processes.gather_list(found), key=lambda p: p[:2]):
            groups.setdefault(peer[0], []).append(Peer(*peer))
        return groups

    def _leak(self, teacher: Teacher, generation: Generation) -> dict[str, float]:
        """How many of the policy's own completions quote a sentence of the teacher's template; none
        where it shows nothing, or its template has no sentence to look for."""
        said = phrases(teacher.template)
        if teacher.shown == "none" or not said:
            return {}
        rows, plans = generation.sampled.rows, generation.plans
        own = [i for i, p in enumerate(plans) if not (p.filler or p.whole or p.hybrid or p.guided)]
        kept = [rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist() for i in own]
        texts = self.contexts.renderer.completions(kept)
        counts = [float(sum(quotes(t, said) for t in texts)), float(len(texts))]
        total = self.processes.sum(torch.tensor(counts, device=self.processes.device)).tolist()
        return {f"{teacher.name}/leak": total[0] / total[1]} if total[1] else {}

    def _columns(self, m: int, prompts: Sequence[list[int] | None]) -> Rows:
        """Prompts as tensors; one token stands where a row is not taught."""
        filler = [self.contexts.renderer.end]
        ids = [torch.tensor(filler if p is None else p) for p in prompts]
        how = {"batch_first": True, "padding_side": "left"}
        padded, mask = (
            torch.nn.utils.rnn.pad_sequence(xs, **how)  # pyright: ignore[reportArgumentType]
            for xs in (ids, [torch.ones_like(x) for x in ids])
        )
        device = self.processes.device
        taught = torch.tensor([p is not None for p in prompts], device=device)
        return {
            f"teacher{m}_ids": padded.to(device),
            f"teacher{m}_mask": mask.to(device),
            f"teacher{m}_taught": taught,
        }

    def _said(self, m: int, teacher: Teacher, rows: Rows) -> Tensor:
        """Log-probs of the completions behind the teacher's prompt, 0 where it does not teach."""
        wanted_BT = rows["completion_mask"].bool() & rows[f"teacher{m}_taught"][:, None]
        with self._reading(teacher):
            return self._forward(teacher).of(self._asked(m, rows), wanted_BT, False).logp_BT

    def _forward(self, teacher: Teacher) -> Forward:
        return self.models.get(teacher.name, self.forward)

    @staticmethod
    def _asked(m: int, rows: Rows) -> Rows:
        """The rows behind the prompt of a teacher."""
        own = {f"prompt_{x}": rows[f"teacher{m}_{x}"] for x in ("ids", "mask")}
        return {**rows, **own}

    @contextmanager
    def _reading(self, teacher: Teacher) -> Iterator[None]:
        """Inside this context a teacher reads rows."""
        with self._weights(teacher), self.forward.scorer.tokens.by_teacher():
            yield

    def _weights(self, teacher: Teacher) -> AbstractContextManager[Any]:
        """Inside this context the policy has the teacher's weights."""
        if teacher.name in self.kept:
            return self.kept[teacher.name].swapped()
        if teacher.weights == "adapter_off":
            return self.forward.plain.disable_adapter()
        return nullcontext()
