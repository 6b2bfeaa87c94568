"""Weights that are kept beside the model's own, and trade places with them.

No second model: the weights are swapped for the duration of a forward or of sampling. With an
adapter only its weights are kept twice. A reference policy is such a set, and so is a teacher that
is the policy of the start, a moving average of it, or a copy of some steps ago.

With FSDP2 each process keeps its own part of them: the parameters are DTensors, whose parts are
what all else is made of, so weights are exchanged there, and what was gathered before is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from prefix_rft.core.teacher import KEPT, Teacher
from prefix_rft.engines.tensors import read_tensors, write_tensors
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

REFERENCE = "reference"
"""The name of the reference policy."""


class KeptWeights:
    """The policy as it was when this was made, or what it became since.

    All processes of a sharded policy call its methods together.

    Args:
        model: the policy, not wrapped; FSDP2 may shard it later.
        name: what its files in a checkpoint are called.
        dtype: the precision that the weights are kept in; None is the model's own. A moving average
            in bfloat16 stands still: a step is smaller than half of its last bit.

    Attributes:
        weights: the weights by name, of a sharded policy this process's parts of them.
        sharded: they are parts.
    """

    def __init__(
        self, model: torch.nn.Module, name: str = REFERENCE, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.name = model, name
        self.renewed = self.sharded = False
        self.hash: str | None = None
        self.weights: dict[str, Tensor] = {}
        found = dict(self._settled())
        self.weights = {n: _own(p).to(dtype or p.dtype, copy=True) for n, p in found.items()}
        self.sharded = any(isinstance(p, DTensor) for p in found.values())

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def _settled(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The policy's parameters, none of them gathered; the weights are those of their parts."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        found = list(self._parameters())
        if not self.sharded and self.weights and any(isinstance(p, DTensor) for _, p in found):
            self.weights = {name: _part(self.weights[name], p) for name, p in found}
            self.sharded, self.hash = True, None
        return iter(found)

    def renew(self) -> None:
        """Keep the policy of now."""
        for name, p in self._settled():
            self.weights[name].copy_(_own(p))
        self.renewed, self.hash = True, None

    def follow(self, rate: float) -> None:
        """Move towards the policy of now: ``phi <- (1 - rate) phi + rate theta``.

        Args:
            rate: the share of the policy, in (0, 1].
        """
        for name, p in self._settled():
            kept = self.weights[name]
            kept.lerp_(_own(p).to(kept), rate)  # which may lie elsewhere
        self.renewed, self.hash = True, None

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has these weights inside this context.

        A forward inside it may stand between a forward of the policy and its backward.
        """
        policy_weights = {name: _give(p, self.weights[name]) for name, p in self._settled()}
        try:
            yield
        finally:
            for name, p in self._settled():
                _give(p, policy_weights[name])

    def _fingerprint(self) -> str:
        """A hash of all weights, taken once for each reference."""
        if self.hash is None:
            digest = hashlib.sha256()
            for name, w in sorted(self.weights.items()):
                digest.update(f"{name} {tuple(w.shape)} {w.dtype}".encode())
                digest.update(w.flatten().view(torch.uint8).cpu().numpy().data)
            self.hash = digest.hexdigest()
        return self.hash

    def _files(self, folder: Path) -> tuple[Path, Path]:
        """Where weights and fingerprint are, those of a part in files of its own."""
        self._settled()
        name = self.name
        if self.sharded:
            name += f"-{dist.get_rank() + 1:05d}-of-{dist.get_world_size():05d}"
        return folder / f"{name}.safetensors", folder / f"{name}.sha256"

    def save(self, folder: Path, main: bool = True) -> None:
        """Write the weights; of those that a run starts from only a fingerprint.

        Args:
            folder: the folder of a checkpoint.
            main: this process writes what all have alike.
        """
        weights, fingerprint = self._files(folder)
        if not (self.sharded or main):
            return
        if self.renewed:
            write_tensors(weights, self.weights)
        write_text(fingerprint, self._fingerprint() + "\n")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote; without weights it is the initial model.

        Raises:
            UserError: a file is missing, or the run had started from another model.
        """
        weights_file, fingerprint = self._files(folder)
        if not fingerprint.is_file():
            raise UserError(
                f"checkpoint '{folder}' has no {fingerprint.name}: it had no {self.name}, or its "
                "weights were not sharded over as many processes"
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


@torch.no_grad()
def _own(p: Tensor) -> Tensor:
    """A parameter's weights, of one that is sharded this process's part of them."""
    return p.to_local() if isinstance(p, DTensor) else p.detach()


def _part(whole: Tensor, p: Tensor) -> Tensor:
    """This process's part of a weight that the first process has, split as a parameter is."""
    if not isinstance(p, DTensor):
        return whole
    there = torch.empty_like(whole, device=p.device) if whole.is_meta else whole.to(p.device)
    return distribute_tensor(there, p.device_mesh, p.placements).to_local().clone()


@torch.no_grad()
def _give(p: torch.nn.Parameter, weight: Tensor) -> Tensor:
    """Give a parameter another weight; the one that it had."""
    if not isinstance(p, DTensor):  # nothing is copied
        before, p.data = p.data, weight.to(p.data)
        return before
    part = _own(p)
    before = part.clone()
    part.copy_(weight)
    return before
