"""The divergence of :mod:`~prefix_rft.core.divergence` from hidden states, in chunks of tokens.

Both heads are applied to one chunk after another, so that logits ``(N, V)`` never exist; the
backward pass computes a chunk's once more. With ``r = log(p / q)`` and KL the sum over entries, the
gradient by the logits of the entries is

    forward  p - q        reverse  p (r - KL)        JS  (1 - alpha) p (log(p / m) - KL(p || m))

divided by the temperature. All three are ``g - p sum(g)``, ``g`` what :func:`slopes` returns, and
an entry above its cap has no ``g``. Outside a support the tail's gradient spreads in proportion to
p; without a tail it is 0.

Memory beside inputs and outputs: a few ``(chunk, V)`` tiles, and the gradient of the student's head
in float32. TRL's ``ChunkedDivergenceFunction`` takes the same arguments, with ``beta`` in the place
of the divergence, and cuts the vocabulary as well; it knows no support, no cap and no double
precision.

Shape letters: N tokens (of a chunk, below :class:`ChunkedDivergence`), V vocabulary, H and G hidden
sizes of student and teacher, K tokens of the support, E entries of the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefix_rft.core.divergence import (
    LOWEST,
    Divergence,
    capped_sum,
    check_pair,
    entries,
    entry_logits,
    log_mixture,
    support_ids,
    working_dtype,
)
from prefix_rft.support.errors import check_range

CHUNK_BYTES = 256 * 2**20
"""Size of a float32 tile of either model's logits, both together."""
CAST_ROWS = 32_768
"""As many rows of a head are cast at once, where it is of another dtype than the sums."""


@dataclass(frozen=True)
class Head:
    """A model's last layer, from hidden states to the logits of its softmax.

    Attributes:
        weight_VH: the weight.
        bias_V: the bias, if there is one.
        scale: the factor of the logits (Cohere's ``logit_scale``).
        softcap: logits become ``softcap tanh(logits / softcap)``, after the factor (Gemma's).
        temperature: the temperature that divides them in the end.
    """

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    temperature: float

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weight in ``dtype``; all at once where nothing has to be cast."""
        size = len(self.weight_VH)
        step = size if self.weight_VH.dtype == dtype else CAST_ROWS
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            yield rows, self.weight_VH[rows].to(dtype)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits before the temperature, in the dtype of the hidden states: a new tensor."""
        tile_NV = hidden_NH.new_empty(len(hidden_NH), len(self.weight_VH))
        for rows, weight_VH in self.blocks(hidden_NH.dtype):
            torch.mm(hidden_NH, weight_VH.t(), out=tile_NV[:, rows])
        if self.bias_V is not None:
            tile_NV.add_(self.bias_V)
        if self.scale != 1.0:
            tile_NV.mul_(self.scale)
        if self.softcap is not None:
            tile_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return tile_NV

    def tempered(self, tile_NV: Tensor) -> Tensor:
        """The logits of the softmax, in place."""
        tile_NV.clamp_(min=LOWEST)
        return tile_NV if self.temperature == 1.0 else tile_NV.div_(self.temperature)

    def bend(self, tile_NV: Tensor) -> Tensor | float:
        """``dz/dx`` of the softmax's logits z and the product x, from :meth:`logits`' result."""
        slope = self.scale / self.temperature
        if self.softcap is None:
            return slope
        return (tile_NV / self.softcap).square_().neg_().add_(1.0).mul_(slope)


class ChunkedDivergence(torch.autograd.Function):
    """``apply`` is :func:`~prefix_rft.core.divergence.divergence` of two heads' logits.

    The gradient goes to the student's hidden states, weight and bias, and never to the teacher's,
    also where both have the same weight (tied, or the student is its own teacher). Sums are in
    float32, or in float64 for such inputs. Autocast does not act inside: no product of matrices
    here makes its own result. The teacher's tensors are read again by the backward pass: until then
    they must hold the teacher's values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        teacher_hidden_NG: Tensor,
        teacher_weight_VG: Tensor,
        teacher_bias_V: Tensor | None,
        spec: Divergence,
        temperature: float = 1.0,
        scale: float = 1.0,
        softcap: float | None = None,
        teacher_scale: float = 1.0,
        teacher_softcap: float | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """The divergence of every token.

        Args:
            ctx: autograd's.
            hidden_NH: the student's last hidden states.
            weight_VH: the weight of the student's head.
            bias_V: its bias, or None.
            teacher_hidden_NG: the teacher's at the same tokens.
            teacher_weight_VG: the weight of the teacher's head.
            teacher_bias_V: its bias, or None.
            spec: which divergence.
            temperature: the temperature that divides both logits.
            scale: the factor of the student's logits.
            softcap: their cap, see :class:`Head`.
            teacher_scale: the factor of the teacher's logits.
            teacher_softcap: their cap.
            chunk: the number of tokens of a tile; by default two tiles have ``CHUNK_BYTES``.

        Returns:
            Shape (N,), in nats, at least float32.

        Raises:
            UserError: numbers of tokens or vocabularies differ, or a number is out of range.
        """
        check_pair(
            torch.Size((len(hidden_NH), len(weight_VH))),
            torch.Size((len(teacher_hidden_NG), len(teacher_weight_VG))),
            temperature,
        )
        chunk = max(1, CHUNK_BYTES // (8 * len(weight_VH))) if chunk is None else chunk
        check_range("tokens of a chunk of a divergence", chunk, 1)
        ctx.save_for_backward(
            hidden_NH, weight_VH, bias_V, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V
        )
        ctx.spec, ctx.chunk = spec, chunk
        ctx.dtype = working_dtype(hidden_NH, weight_VH, teacher_hidden_NG, teacher_weight_VG)
        ctx.settings = (scale, softcap, temperature), (teacher_scale, teacher_softcap, temperature)
        student = Head(weight_VH, bias_V, *ctx.settings[0])
        teacher = Head(teacher_weight_VG, teacher_bias_V, *ctx.settings[1])
        found_N = hidden_NH.new_empty(len(hidden_NH), dtype=ctx.dtype)
        for start in range(0, len(hidden_NH), chunk):
            rows = slice(start, start + chunk)
            found_N[rows] = values(
                student.tempered(student.logits(hidden_NH[rows].to(ctx.dtype))),
                teacher.tempered(teacher.logits(teacher_hidden_NG[rows].to(ctx.dtype))),
                spec,
            )
        return found_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstreams: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients to the student's hidden states, weight and bias, where they are asked for."""
        hidden_NH, weight_VH, bias_V, teacher_hidden_NG, *teachers = ctx.saved_tensors
        student = Head(weight_VH, bias_V, *ctx.settings[0])
        teacher = Head(*teachers, *ctx.settings[1])
        asked = ctx.needs_input_grad
        inputs = (hidden_NH, weight_VH, bias_V)
        sums = [
            torch.zeros_like(x, dtype=ctx.dtype) if asked[i] else None for i, x in enumerate(inputs)
        ]
        hidden_sum_NH, weight_sum_VH, bias_sum_V = sums
        for start in range(0, len(hidden_NH), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            chunk_NH = hidden_NH[rows].to(ctx.dtype)
            tile_NV = student.logits(chunk_NH)
            bend = student.bend(tile_NV)
            tile_NV = gradient(
                student.tempered(tile_NV),
                teacher.tempered(teacher.logits(teacher_hidden_NG[rows].to(ctx.dtype))),
                ctx.spec,
            )
            tile_NV.mul_(upstreams[0][rows, None]).mul_(bend)
            if hidden_sum_NH is not None:
                for columns, block_VH in student.blocks(ctx.dtype):
                    hidden_sum_NH[rows].addmm_(tile_NV[:, columns], block_VH)
            if weight_sum_VH is not None:
                weight_sum_VH.addmm_(tile_NV.t(), chunk_NH)
            if bias_sum_V is not None:
                bias_sum_V.add_(tile_NV.sum(0))
        given = (None if s is None else s.to(x.dtype) for s, x in zip(sums, inputs, strict=True))
        return (*given, *(None,) * 10)


def values(student_NV: Tensor, teacher_NV: Tensor, spec: Divergence) -> Tensor:
    """The divergence of a chunk's tokens, shape (N,); overwrites the logits."""
    ids_NK = support_ids(student_NV, teacher_NV, spec)
    log_p_NE, log_q_NE = (restricted(x, ids_NK, spec) for x in (student_NV, teacher_NV))
    return capped_sum(entries(log_p_NE, log_q_NE, spec.alpha), spec)


def gradient(student_NV: Tensor, teacher_NV: Tensor, spec: Divergence) -> Tensor:
    """``dD/dz`` of a chunk's tokens, shape (N, V), a new tensor; overwrites the logits."""
    ids_NK = support_ids(student_NV, teacher_NV, spec)
    log_p_NE, log_q_NE = (restricted(x, ids_NK, spec) for x in (student_NV, teacher_NV))
    kept = below_cap(log_p_NE, log_q_NE, spec)
    slope_NE = slopes(log_p_NE, log_q_NE, spec.alpha)
    if kept is not None:
        slope_NE.mul_(kept)
    slope_NE.addcmul_(log_p_NE.exp_(), slope_NE.sum(1, keepdim=True), value=-1.0)
    if ids_NK is None:
        return slope_NE
    if not spec.tail:
        return torch.zeros_like(student_NV).scatter_(1, ids_NK, slope_NE)
    tail_NV = student_NV.scatter_(1, ids_NK, LOWEST).softmax(1)
    return tail_NV.mul_(slope_NE[:, -1:]).scatter_(1, ids_NK, slope_NE[:, :-1])


def below_cap(log_p_NE: Tensor, log_q_NE: Tensor, spec: Divergence) -> Tensor | None:
    """What a cap leaves as it is: entries, shape (N, E), or tokens, shape (N, 1)."""
    if spec.cap is None:
        return None
    each_NE = entries(log_p_NE, log_q_NE, spec.alpha)
    return (each_NE if spec.cap_level == "entry" else each_NE.sum(1, keepdim=True)) <= spec.cap


def restricted(logits_NV: Tensor, ids_NK: Tensor | None, spec: Divergence) -> Tensor:
    """Log-probabilities of the entries, shape (N, E); overwrites the logits of a vocabulary."""
    logits_NE = entry_logits(logits_NV, ids_NK, spec.tail)
    return logits_NE.sub_(logits_NE.logsumexp(1, keepdim=True))


def slopes(log_p_NE: Tensor, log_q_NE: Tensor, alpha: float) -> Tensor:
    """``g``, the derivative of each entry by ``log p`` where p is not tied to sum to 1: (N, E)."""
    if alpha == 0.0:
        return log_q_NE.exp().neg_()
    if alpha == 1.0:
        return (log_p_NE - log_q_NE).add_(1.0).mul_(log_p_NE.exp())
    away_NE = log_p_NE - log_mixture(log_p_NE, log_q_NE, alpha)
    return away_NE.mul_(log_p_NE.exp()).mul_(1.0 - alpha)
