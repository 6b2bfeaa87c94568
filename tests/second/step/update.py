"""What formulas read of a training step: rows, their log-probs, advantages, selection, means."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

ROLLOUT = ("own", "hybrid")
ALL = ("own", "hybrid", "demo")
LogProbs = Callable[[], list[Tensor]]
"""Makes the log-probs of all rows, where they are asked for."""


@dataclass
class Row:
    """A row as plain lists: an own rollout, one behind a prefix, or a whole demonstration; and its
    place in its group."""

    prompt: list[int]
    completion: list[int]
    prefix: int = 0
    whole: bool = False
    reward: float = math.nan
    group: int | str = 0
    example: int = 0
    place: int = 0

    @property
    def kind(self) -> str:
        """One of ``own``, ``hybrid``, ``demo``."""
        return "demo" if self.whole else "hybrid" if self.prefix else "own"


def score(model: Any, row: Row, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion's tokens and entropies before them, without any padding."""
    logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0].float()
    table = (logits / temperature).log_softmax(-1)[len(row.prompt) - 1 : -1]
    return table[range(len(row.completion)), row.completion], -(table.exp() * table).sum(-1)


class Update:
    """An optimizer step as formulas see it.

    Attributes:
        rows: what the step trains.
        generation: all rows that were made together with them.
        lp: log-probs of each row's completion, with gradient.
        H: entropies before its tokens, with gradient.
        old: log-probs under the policy that made the rows; that of the model unless given.
        ref: log-probs under the reference, likewise.
        weight: a factor of each token's policy gradient; None is 1.
        const: what a sum over a row is divided by, the budget of a completion.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        generation: Sequence[Row],
        *,
        const: float,
        old: LogProbs | None = None,
        ref: LogProbs | None = None,
        weight: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
        step: int = 0,
        total: int = 1,
    ) -> None:
        self.model, self.rows, self.generation = model, rows, generation
        self.const, self.weight, self.step, self.total = const, weight, step, total
        self._old, self._ref = old or self._present, ref or self._present
        both = [score(model, r, temperature) for r in rows]
        self.lp, self.H = [x for x, _ in both], [x for _, x in both]

    def _present(self) -> list[Tensor]:
        return [x.detach() for x in self.lp]

    @cached_property
    def old(self) -> list[Tensor]:
        return self._old()

    @cached_property
    def ref(self) -> list[Tensor]:
        return self._ref()

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Of all parameters."""
        found = torch.autograd.grad(
            loss, list(self.model.parameters()), retain_graph=True, allow_unused=True
        )
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.model.parameters(), found, strict=True)
        ]

    def of(self, *kinds: str) -> list[int]:
        """Rows of these kinds."""
        return [i for i, r in enumerate(self.rows) if r.kind in kinds]

    def mates(self, i: int, *kinds: str) -> list[Row]:
        """Rows of a row's group, of these kinds, wherever in the generation they are."""
        return [r for r in self.generation if r.group == self.rows[i].group and r.kind in kinds]

    def rate(self, i: int, *kinds: str) -> float:
        """Share of solved rows among the graded ones of the group."""
        return solve_rate(self.mates(i, *kinds))

    def ratio(self, i: int) -> Tensor:
        """pi / pi_old of each token."""
        return (self.lp[i] - self.old[i]).exp()

    def kl(self, i: int) -> Tensor:
        """Schulman's k3 of each token, from the reference."""
        d = self.ref[i] - self.lp[i]
        return d.exp() - d - 1


def solve_rate(rows: Sequence[Row]) -> float:
    """Share of solved rows among the graded ones; NaN where none is graded."""
    known = [r.reward > 0 for r in rows if not math.isnan(r.reward)]
    return sum(known) / len(known) if known else math.nan


def advantage(row: Row, mates: Sequence[Row], how: str = "mean") -> float:
    """R less the mean of the graded mates; over the std; or over the others' mean."""
    known = [m.reward for m in mates if not math.isnan(m.reward)]
    if math.isnan(row.reward) or len(known) < 2:
        return 0.0
    centred = row.reward - sum(known) / len(known)
    if how == "std":
        return centred / (statistics.stdev(known) + 1e-6)
    return centred * len(known) / (len(known) - 1) if how == "others" else centred


def priced(row: Row, budget: float, buffer: int) -> Row:
    """A rollout pays for the tokens that it has beyond the budget less ``buffer``: 1 at the end."""
    if not buffer or row.whole:
        return row
    excess = min(max(len(row.completion) - (budget - buffer), 0), buffer)
    return replace(row, reward=row.reward - excess / buffer)


def ppo(ratio: Tensor, A: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """The smaller of the two."""
    return torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)


def selected(
    rows: Sequence[Row], entropies: Sequence[Tensor], fraction: float
) -> set[tuple[int, int]]:
    """This share of the rows' prefix tokens, the most uncertain ones, as row and place."""
    pool = sorted(
        (-H[t].item(), i, t)
        for i, (row, H) in enumerate(zip(rows, entropies, strict=True))
        if row.kind == "hybrid"
        for t in range(row.prefix)
    )
    return {(i, t) for _, i, t in pool[: math.ceil(fraction * len(pool) - 1e-9)]}


def total(values: Sequence[Tensor]) -> Tensor:
    """Their sum; 0 of nothing."""
    return torch.stack(list(values)).sum() if values else torch.zeros((), requires_grad=True)


def per(n: float, values: Sequence[Tensor]) -> Tensor:
    """Minus the sum over n, nothing where n is 0."""
    return -total([v.sum() for v in values]) / n if n else total([])


def row_means(values: Sequence[Tensor]) -> Tensor:
    """Minus the mean over rows of means over tokens."""
    return -total([v.mean() for v in values]) / len(values) if values else total([])


def tokens(u: Update, rows: Sequence[int]) -> int:
    """Completion tokens of the rows."""
    return sum(len(u.rows[i].completion) for i in rows)


def relative_error(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of ``b``; the norm of ``a`` where ``b`` is 0."""
    difference = math.sqrt(sum(((x - y) ** 2).sum().item() for x, y in zip(a, b, strict=True)))
    size = math.sqrt(sum((y**2).sum().item() for y in b))
    return difference / size if size else difference
