"""The processes of a run: which of them this one is, and what they tell one another."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """All processes that share the optimizer steps of a run, seen from one of them.

    Every method but :meth:`own` must be called by all processes together.

    Args:
        accelerator: accelerate's ``Accelerator``, set up already.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    @property
    def index(self) -> int:
        """The number of this process, from 0."""
        return self._accelerator.process_index

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self._accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what all have made together."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process keeps its tensors."""
        return self._accelerator.device

    @property
    def fsdp2(self) -> bool:
        """Whether weights are sharded by FSDP2, which leaves parameters their places and names."""
        return bool(self._accelerator.is_fsdp2)

    def own(self, rows: int) -> slice:
        """Where this process's ``rows`` stand among those of all, if each holds as many."""
        first = self.index * rows
        return slice(first, first + rows)

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes in process order, shape (rows of all, ...)."""
        return self._accelerator.gather(x)

    def gather_list(self, xs: list[Any]) -> list[Any]:
        """The items of all processes in process order."""
        return gather_object(xs)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, of the shape of ``x``."""
        return self._accelerator.reduce(x, reduction="sum")
