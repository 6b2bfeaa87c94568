"""The reference policy as a second set of weights that trades places with the model's own.

No second model: the weights are swapped for the duration of a forward or of sampling. With an
adapter only its weights are kept twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prefix_rft.engines.trl.tensors import read_tensors, write_tensors
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

WEIGHTS = "reference.safetensors"
FINGERPRINT = "reference.sha256"


class ReferencePolicy:
    """The policy as it was when this was made, or last renewed.

    Args:
        model: the policy, whose weights are neither sharded nor wrapped.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.renewed = False
        self.hash: str | None = None
        self.weights: dict[str, Tensor] = {}
        self._copy()

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def _copy(self) -> None:
        self.weights = {name: p.detach().clone() for name, p in self._parameters()}
        self.hash = None

    def renew(self) -> None:
        """Make the policy of now the reference."""
        self._copy()
        self.renewed = True

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the reference's weights inside this context."""
        policy_weights = {name: p.data for name, p in self._parameters()}
        for name, p in self._parameters():
            p.data = self.weights[name]
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
            write_tensors(folder / WEIGHTS, self.weights)
        write_text(folder / FINGERPRINT, self._fingerprint() + "\n")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote; without weights the reference is the initial model.

        Raises:
            UserError: a file is missing, or the run had started from another model.
        """
        if not (folder / FINGERPRINT).is_file():
            raise UserError(f"checkpoint '{folder}' has no {FINGERPRINT}: it had no reference")
        if (folder / WEIGHTS).is_file():
            weights = read_tensors(folder / WEIGHTS)
            shapes = {n: w.shape for n, w in weights.items()}
            if shapes != {n: w.shape for n, w in self.weights.items()}:
                raise UserError(f"'{folder / WEIGHTS}' holds the weights of another model")
            self.weights = {n: weights[n].to(w) for n, w in self.weights.items()}
            self.renewed, self.hash = True, None
        if (folder / FINGERPRINT).read_text(encoding="utf-8").strip() != self._fingerprint():
            raise UserError(
                f"checkpoint '{folder}' was made with another reference policy: give the trainer "
                "the model that the run started from"
            )
