"""Weights that are kept beside the model's own, and trade places with them.

No second model: the weights are swapped for the duration of a forward or of sampling. With an
adapter only its weights are kept twice. A reference policy is such a set, and so is a teacher that
is the policy of the start, a moving average of it, or a copy of some steps ago.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prefix_rft.core.teacher import KEPT, Teacher
from prefix_rft.engines.tensors import read_tensors, write_tensors
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

REFERENCE = "reference"
"""The name of the reference policy."""


class KeptWeights:
    """The policy as it was when this was made, or what it became since.

    Args:
        model: the policy, whose weights are neither sharded nor wrapped.
        name: what its files in a checkpoint are called.
        dtype: the precision that the weights are kept in; None is the model's own. A moving average
            in bfloat16 stands still: a step is smaller than half of its last bit.
    """

    def __init__(
        self, model: torch.nn.Module, name: str = REFERENCE, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.name = model, name
        self.renewed = False
        self.hash: str | None = None
        self.weights: dict[str, Tensor] = {
            n: p.detach().to(dtype or p.dtype, copy=True) for n, p in self._parameters()
        }

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def renew(self) -> None:
        """Keep the policy of now."""
        for name, p in self._parameters():
            self.weights[name].copy_(p.detach())
        self.renewed, self.hash = True, None

    def follow(self, rate: float) -> None:
        """Move towards the policy of now: ``phi <- (1 - rate) phi + rate theta``.

        Args:
            rate: the share of the policy, in (0, 1].
        """
        for name, p in self._parameters():
            kept = self.weights[name]
            kept.lerp_(p.detach().to(kept), rate)  # which may lie elsewhere
        self.renewed, self.hash = True, None

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has these weights inside this context."""
        policy_weights = {name: p.data for name, p in self._parameters()}
        for name, p in self._parameters():
            p.data = self.weights[name].to(p.dtype)
        try:
            yield
        finally:
            for name, p in self._parameters():
                p.data = policy_weights[name]

    def _fingerprint(self) -> str:
        """A hash of all weights, taken once for each reference."""
        if self.hash is None:
            digest = hashlib.sha256()
            for name, w in sorted(self.weights.items()):
                digest.update(f"{name} {tuple(w.shape)} {w.dtype}".encode())
                digest.update(w.flatten().view(torch.uint8).cpu().numpy().data)
            self.hash = digest.hexdigest()
        return self.hash

    def save(self, folder: Path) -> None:
        """Write the weights; of those that a run starts from only a fingerprint."""
        if self.renewed:
            write_tensors(folder / f"{self.name}.safetensors", self.weights)
        write_text(folder / f"{self.name}.sha256", self._fingerprint() + "\n")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote; without weights it is the initial model.

        Raises:
            UserError: a file is missing, or the run had started from another model.
        """
        weights_file, fingerprint = (folder / f"{self.name}.{x}" for x in ("safetensors", "sha256"))
        if not fingerprint.is_file():
            raise UserError(
                f"checkpoint '{folder}' has no {fingerprint.name}: it had no {self.name}"
            )
        if weights_file.is_file():
            weights = read_tensors(weights_file)
            shapes = {n: w.shape for n, w in weights.items()}
            if shapes != {n: w.shape for n, w in self.weights.items()}:
                raise UserError(f"'{weights_file}' holds the weights of another model")
            self.weights = {n: weights[n].to(w) for n, w in self.weights.items()}
            self.renewed, self.hash = True, None
        if fingerprint.read_text(encoding="utf-8").strip() != self._fingerprint():
            raise UserError(
                f"checkpoint '{folder}' was made with another {self.name} policy: give the trainer "
                "the model that the run started from"
            )


def precisions(teachers: Sequence[Teacher]) -> dict[str, torch.dtype | None]:
    """The names of the teachers whose weights are kept, each with the precision that it takes."""
    return {
        t.name: torch.float32 if t.weights == "ema" else None for t in teachers if t.weights in KEPT
    }


def move(kept: Mapping[str, KeptWeights], teachers: Sequence[Teacher], step: int) -> None:
    """Have the teachers that follow the policy do so, before its update that begins now.

    Args:
        kept: the weights that are kept for teachers, by their names.
        teachers: the method's.
        step: optimizer steps done.
    """
    for teacher in teachers:
        if teacher.name not in kept or not step or step % teacher.every:
            continue
        if teacher.weights == "ema":
            kept[teacher.name].follow(teacher.rate)
        elif teacher.weights == "snapshot":
            kept[teacher.name].renew()
