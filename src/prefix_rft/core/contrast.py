"""Advantages from the log-probabilities of whole sequences: a demonstration against own samples.

Shape letters: N rows of whole groups, of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core.planner import Record
from prefix_rft.support.errors import UserError

LOG_LIMIT = 20.0
"""An exponent beyond it (a factor of 5e8) is held."""


@dataclass(frozen=True)
class Sequences:
    """The rows of whole groups under the current policy, detached.

    Attributes:
        logp_N: sum of the log-probabilities of the row's response.
        length_N: tokens of the response.
        group_N: int64 group ids.
        demo_N: bool, whole demonstrations; the others are negatives.
        example_N: int64 index of the row's example.
        ref_logp_N: the same sum under the reference policy.
    """

    logp_N: Tensor
    length_N: Tensor
    group_N: Tensor
    demo_N: Tensor
    example_N: Tensor
    ref_logp_N: Tensor | None = None

    @property
    def ref(self) -> Tensor:
        """The sums under the reference policy.

        Raises:
            UserError: there is none.
        """
        if self.ref_logp_N is None:
            raise UserError("a contrast compares with the reference policy, but got none")
        return self.ref_logp_N

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Indices of the demonstrations and of the negatives of each group that has both."""
        pairs = []
        for g in torch.unique(self.group_N):
            rows = self.group_N == g
            both = (rows & self.demo_N).nonzero()[:, 0], (rows & ~self.demo_N).nonzero()[:, 0]
            if len(both[0]) and len(both[1]):
                pairs.append(both)
        return pairs


class Contrast:
    """Gives each row its ``sequence`` advantage. Derive a frozen dataclass from it."""

    needs_reference = False

    def __call__(
        self, rows: Sequences, memory: Mapping[int, Record]
    ) -> tuple[Tensor, dict[int, Record]]:
        """Advantages, shape (N,), and what to remember of each example from now on.

        A group without a demonstration or without negatives gets 0.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Discriminative(Contrast):
    """Discriminative fine-tuning: a demonstration against an estimate of all other answers.

    arXiv 2502.18679 and the authors' code: ``s_j = log pi(y_j)/tau - log pi_ref(y_j)`` of the
    negatives (sums over the sequence; with ``averaged`` the mean log-probability over tau and no
    reference, DFT2), ``u <- log((1-gamma) e^u + gamma mean_j e^s_j)``, an average that moves with
    each visit of the example from u = 0, and the negatives' advantage ``-exp(s_j - u) / B``.
    Demonstrations have advantage 1.
    """

    tau: float = 1.0
    gamma: float = 0.85
    averaged: bool = False

    def __post_init__(self) -> None:
        if self.tau <= 0 or not 0.0 < self.gamma <= 1.0:
            raise UserError(
                f"tau must be positive and gamma in (0, 1], got {self.tau} and {self.gamma}"
            )

    @property
    def needs_reference(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """DFT2 has no reference."""
        return not self.averaged

    def __call__(
        self, rows: Sequences, memory: Mapping[int, Record]
    ) -> tuple[Tensor, dict[int, Record]]:
        """Advantages, and the moving average ``u`` of each example."""
        logp = rows.logp_N.double()
        if self.averaged:
            score = logp / rows.length_N.clamp(min=1) / self.tau
        else:
            score = logp / self.tau - rows.ref.double()
        advantage, updates = torch.zeros_like(logp), dict[int, Record]()
        for demonstrations, negatives in rows.groups():
            advantage[demonstrations] = 1.0
            example = int(rows.example_N[negatives[0]])
            record = updates.get(example, memory.get(example, {}))
            before = torch.tensor(record.get("u", 0.0), dtype=torch.float64)
            s = score[negatives]
            log_mean = s.logsumexp(0).cpu() - torch.tensor(len(s), dtype=torch.float64).log()
            old_part = before + torch.tensor(1.0 - self.gamma, dtype=torch.float64).log()
            new_part = log_mean + torch.tensor(self.gamma, dtype=torch.float64).log()
            u = torch.logaddexp(old_part, new_part)
            updates[example] = {"u": u.item()}
            excess = (s - u.to(s.device)).clamp(max=LOG_LIMIT)
            advantage[negatives] = -excess.exp() / len(s)
        return advantage, updates


@dataclass(frozen=True)
class SelfPlay(Contrast):
    """IRFT: ``-log sigmoid(beta [log pi/pi_k (demonstration) - log pi/pi_k (negative)])``.

    arXiv 2405.17888 and the authors' code (one stage is SPIN, arXiv 2401.01335): sums over the
    sequence, ``pi_k`` the policy at the start of the stage, which is the reference. The gradient
    is that of ``A log pi`` with ``A = +-beta sigmoid(-beta margin)``; with several negatives the
    pairs are averaged.
    """

    beta: float = 0.1
    needs_reference = True

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UserError(f"beta must be positive, got {self.beta}")

    def __call__(
        self, rows: Sequences, memory: Mapping[int, Record]
    ) -> tuple[Tensor, dict[int, Record]]:
        """Advantages; nothing is remembered."""
        gain = rows.logp_N.double() - rows.ref.double()
        advantage = torch.zeros_like(gain)
        for demonstrations, negatives in rows.groups():
            margin = gain[demonstrations][:, None] - gain[negatives][None, :]
            pull = self.beta * torch.sigmoid(-self.beta * margin) / margin.numel()
            advantage[demonstrations] = pull.sum(1)
            advantage[negatives] = -pull.sum(0)
        return advantage, {}
