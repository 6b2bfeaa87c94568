"""How much of the gradient comes from where: prefixes, continuations, on-policy rows, ...

The paper says that prefix tokens are 5 to 10 % of a batch and double the norm of the gradient
(arXiv 2507.01679 v3, Table 4). Here the gradient of each source is computed alone, by a backward
pass of its own that leaves ``.grad`` and the graph as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Batch, Method, Targets, token_losses
from prefix_rft.core.stream import REGULARISERS
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class LossPart:
    """A part of the loss.

    Attributes:
        name: the stream's, or the origin's where a stream trains tokens of several.
        stream: its place in the method.
        origin: the origin of its tokens; None for a regulariser, which is not split.
    """

    name: str
    stream: int
    origin: str | None

    @property
    def prefix(self) -> bool:
        """Whether it trains the demonstration part of hybrid rows."""
        return self.origin == "prefix"

    @property
    def hybrid(self) -> bool:
        """Whether it trains hybrid rows alone."""
        return self.origin in ("prefix", "continuation")


def sources_of(method: Method) -> list[LossPart]:
    """The sources of a method's gradient, which together are the whole loss."""
    sources = []
    for s, stream in enumerate(method.streams):
        if stream.surrogate in REGULARISERS:
            sources.append(LossPart(stream.name, s, None))
        elif len(set(stream.tokens)) == 1:
            sources.append(LossPart(stream.name, s, stream.tokens[0]))
        else:
            sources += [LossPart(origin, s, origin) for origin in dict.fromkeys(stream.tokens)]
    return sources


def vectors_of(sources: Sequence[LossPart]) -> dict[str, list[int]]:
    """Which sources (by their places) add up to which vector, of which the norm is logged."""
    vectors: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        vectors.setdefault(source.name, []).append(i)
    rules: dict[str, Callable[[LossPart], bool]] = {
        "prefix": lambda s: s.prefix,
        "hybrid": lambda s: s.hybrid,
        "without_prefix": lambda s: not s.prefix,
    }
    for name, rule in rules.items():
        vectors[name] = [i for i, source in enumerate(sources) if rule(source)]
    return vectors


class GradientShares:
    """Norms of the gradients of the sources over an optimizer step and all processes.

    Takes one more backward pass for each source, and room for one more gradient (float32) of each,
    in the steps in which it is due. Changes nothing of the training. The balancing loss of a
    mixture of experts is no source.

    Args:
        args: the trainer's configuration, with ``gradient_shares_every`` at 1 or more.
        method: the method whose gradient it is.
        model: the policy.
        sharded: its weights are spread over processes.

    Raises:
        UserError: the gradient cannot be taken apart in this setting.
    """

    @classmethod
    def of(
        cls, args: Any, method: Method, model: torch.nn.Module, sharded: bool
    ) -> GradientShares | None:
        """What a trainer's arguments ask for; None where they ask for nothing."""
        return cls(args, method, model, sharded) if args.gradient_shares_every else None

    def __init__(self, args: Any, method: Method, model: torch.nn.Module, sharded: bool) -> None:
        kwargs = args.gradient_checkpointing_kwargs or {}
        why = None
        if sharded:
            why = "with sharded weights (FSDP, DeepSpeed)"
        elif args.gradient_checkpointing and kwargs.get("use_reentrant"):
            why = "with reentrant checkpointing: set use_reentrant to false"
        elif getattr(args, "ddp_static_graph", None):
            why = "with ddp_static_graph, which allows one backward pass: leave it out"
        elif args.torch_compile:
            why = "with torch_compile, whose graphs allow one backward pass: leave it out"
        self.every: int = args.gradient_shares_every
        self.method, self.model = method, model
        self.sources = sources_of(method)
        for s in self.sources:
            if s.name in ("hybrid", "without_prefix") or (s.name == "prefix" and not s.prefix):
                why = f"with a stream named '{s.name}', the name of another norm: rename it"
        if why:
            raise UserError(f"gradient_shares_every cannot be used {why}")
        self.sums: dict[int, list[Tensor]] = {}

    def due(self, step: int) -> bool:
        """Whether an optimizer step is measured: the first one, and so on."""
        return step % self.every == 0

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def add(
        self, batch: Batch, targets: Targets, logp_BT: Tensor, entropy_BT: Tensor | None
    ) -> None:
        """Take the gradients of a micro-batch, before its own backward pass frees the graph."""
        losses_SBT = token_losses(self.method, batch, logp_BT, entropy_BT, targets)
        parameters = self._parameters()
        for i, source in enumerate(self.sources):
            acts_BT = targets.acts_SBT[source.stream]
            if source.origin is not None:
                acts_BT = acts_BT & batch.origin((source.origin,))
            if not bool(acts_BT.any()):
                continue
            gradients = torch.autograd.grad(
                losses_SBT[source.stream].where(acts_BT, 0.0).sum(),
                parameters,
                retain_graph=True,
                allow_unused=True,
            )
            if i not in self.sums:
                self.sums[i] = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
            for total, g in zip(self.sums[i], gradients, strict=True):
                if g is not None:
                    total += g

    def take(self, processes: Processes) -> dict[str, float]:
        """The norms of the step by the names of their metrics; the sums begin anew.

        A vector none of whose tokens was trained on any process is left out.
        """
        sums = self.sums
        self.sums = {}
        own_acted = torch.tensor(
            [i in sums for i in range(len(self.sources))], device=processes.device
        )
        acted = processes.sum(own_acted.long()).bool().tolist()
        active = [i for i, a in enumerate(acted) if a]
        vectors = {
            name: places
            for name, members in vectors_of(self.sources).items()
            if (places := [active.index(i) for i in members if acted[i]])
        }
        squares: dict[str, list[Tensor]] = {name: [] for name in vectors}
        for k, p in enumerate(self._parameters() if active else []):
            zero = torch.zeros_like(p, dtype=torch.float32)
            parts = torch.stack([sums[i][k] if i in sums else zero for i in active])
            parts = processes.sum(parts)
            for name, places in vectors.items():
                squares[name].append(parts[places].sum(0).norm())
        norms = {n: math.hypot(*torch.stack(x).tolist()) for n, x in squares.items()}
        return self._named(norms, [self.sources[i] for i in active])

    @staticmethod
    def _named(norms: dict[str, float], active: Sequence[LossPart]) -> dict[str, float]:
        metrics = {f"gradient/{name}_norm": norm for name, norm in norms.items()}
        if "prefix" not in norms:
            metrics.pop("gradient/without_prefix_norm", None)  # it is the whole
        elif whole := sum(norms[name] for name in dict.fromkeys(s.name for s in active)):
            metrics["gradient/prefix_share"] = norms["prefix"] / whole
        return metrics
