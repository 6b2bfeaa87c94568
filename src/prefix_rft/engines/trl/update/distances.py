"""How far a micro-batch's policy is from its teachers, over the vocabulary and with gradient.

A teacher's forward without gradient comes first; its hidden states stay. The divergences are made
of them inside the policy's own forward, so that no logits of a whole micro-batch are ever there.

Shape letters: B rows, T tokens, S streams, M teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core import Method, Targets
from prefix_rft.engines.states import States, compared
from prefix_rft.engines.trl.rollout.teaching import Teaching
from prefix_rft.engines.trl.window import Rows


@dataclass(frozen=True)
class Heard:
    """What a teacher says of a micro-batch.

    Attributes:
        where_BT: bool, the tokens of which it says something.
        logp_BT: the log-probs of these, NaN elsewhere.
        states: its states before them.
    """

    where_BT: Tensor
    logp_BT: Tensor
    states: States


@dataclass(frozen=True)
class Distances:
    """The divergence streams of a micro-batch.

    Attributes:
        method: the method.
        acts_SBT: bool, the tokens on which each stream acts.
        wanted_BT: bool, the tokens that the policy's forward scores, those among them.
        heard: what each teacher says of them, by its name.
        temperature: the temperature of both softmaxes.
    """

    method: Method
    acts_SBT: Tensor
    wanted_BT: Tensor
    heard: Mapping[str, Heard]
    temperature: float

    @classmethod
    def hear(
        cls,
        method: Method,
        targets: Targets,
        rows: Rows,
        wanted_BT: Tensor,
        teaching: Teaching | None,
        temperature: float,
    ) -> Distances | None:
        """Have the teachers speak; None where no divergence has a part in the step.

        Args:
            method: the method.
            targets: the targets of the micro-batch.
            rows: TRL's tensors of it.
            wanted_BT: bool, the tokens that the policy's forward is going to score.
            teaching: has the method's teachers score rows.
            temperature: the temperature of both softmaxes.
        """
        heard: dict[str, Heard] = {}
        live = live_streams(method, targets)
        for m, teacher in enumerate(method.teachers):
            own = [s for s in live if method.streams[s].teacher == teacher.name]
            if not own or teaching is None:
                continue
            where_BT = targets.acts_SBT[own].any(0)
            logp_BT, states = teaching.states(m, teacher, rows, where_BT)
            heard[teacher.name] = Heard(where_BT, logp_BT.where(where_BT, torch.nan), states)
        return cls(method, targets.acts_SBT, wanted_BT, heard, temperature) if heard else None

    @property
    def _streams(self) -> list[int]:
        return [s for s in self.method.divergences if self.method.streams[s].teacher in self.heard]

    def beside(self, states: States) -> list[Tensor]:
        """The divergences at the tokens on which each stream acts, inside the policy's forward.

        Args:
            states: the policy's before the wanted tokens.
        """
        found = []
        for s in self._streams:
            stream, acts_BT = self.method.streams[s], self.acts_SBT[s]
            assert stream.divergence is not None  # noqa: S101  (a divergence stream's)
            heard = self.heard[stream.teacher]
            own, theirs = (
                states.at(acts_BT[self.wanted_BT]),
                heard.states.at(acts_BT[heard.where_BT]),
            )
            found.append(compared(own, theirs, stream.divergence, self.temperature))
        return found

    def placed(self, found: Sequence[Tensor]) -> Tensor:
        """What :meth:`beside` made, at its tokens, shape (S, B, T); 0 elsewhere.

        Args:
            found: what it made.
        """
        nothing = found[0].new_zeros(self.wanted_BT.shape)
        values = [nothing] * len(self.method.streams)
        for s, value in zip(self._streams, found, strict=True):
            values[s] = nothing.masked_scatter(self.acts_SBT[s], value)
        return torch.stack(values)

    def said(self) -> Tensor:
        """Log-probs of the tokens under each teacher, shape (M, B, T), NaN where none was asked."""
        unknown = torch.full(self.wanted_BT.shape, torch.nan, device=self.wanted_BT.device)
        teachers = [t.name for t in self.method.teachers]
        known = [self.heard[n].logp_BT if n in self.heard else unknown for n in teachers]
        return torch.stack(known)


def live_streams(method: Method, targets: Targets) -> list[int]:
    """The divergence streams that have a part in the step, on whatever process.

    Args:
        method: the method.
        targets: the targets of the step.
    """
    return [s for s in method.divergences if targets.scale_S[s] != 0.0]
