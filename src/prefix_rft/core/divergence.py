"""The divergence between a student's and a teacher's distribution of the next token.

p is the student's, q the teacher's. ``alpha`` is named as TRL, GKD (arXiv 2306.13649), SDFT, OPSD
and SDPO (arXiv 2601.20802) have it: 0 is the forward ``KL(q || p)``, 1 the reverse ``KL(p || q)``,
and between them ``JS = (1 - alpha) KL(p || m) + alpha KL(q || m)`` with the mixture
``m = (1 - alpha) p + alpha q``. **0 and 1 are special cases, not limits**: JS tends to 0 there.

Here all logits of a batch are in memory, and the gradient is autograd's;
:mod:`~prefix_rft.core.chunked_divergence` has neither.

Shape letters: N tokens, V vocabulary, K tokens of the support, E entries of the sum (the
vocabulary, or the support with one more for the tail).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError, check_range, choose

SUPPORTS = ("vocabulary", "student", "teacher")
CAP_LEVELS = ("token", "entry")
LOWEST = -1e30
"""Logits are held above it: a token that neither model can have adds 0, where -inf gives NaN."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence, over which tokens.

    Attributes:
        alpha: 0 is the forward KL, 1 the reverse; between them it is Jensen and Shannon's.
        support: the sum goes over the ``vocabulary``, or over the ``top`` likeliest tokens of the
            ``student`` or the ``teacher``; no gradient goes through the choice.
        top: the number of tokens of the support; as many as the vocabulary has are all of it.
        tail: the mass outside the support is one more entry, of which the gradient is exact, so
            that the optimum stays where it is (SDPO). False renormalises both on the support, which
            does not see what lies outside (TRL's ``distillation_add_tail=False``).
        cap: the most that a token or an entry contributes; what lies above has no gradient.
        cap_level: what is capped: the divergence of a ``token``, or each ``entry`` before the sum.
            The latter is OPSD's later release (.05): the value can be negative, and descent can
            lower a token that the teacher wants higher, since the entries below the cap still push
            it through the softmax.

    Raises:
        UserError: a value is out of range, or would be ignored.
    """

    alpha: float = 0.0
    support: str = "vocabulary"
    top: int = 100
    tail: bool = True
    cap: float | None = None
    cap_level: str = "token"

    def __post_init__(self) -> None:
        check_range("alpha of a divergence", self.alpha, 0.0, 1.0)
        choose("support of a divergence", self.support, SUPPORTS)
        choose("cap_level of a divergence", self.cap_level, CAP_LEVELS)
        check_range("top of a divergence", self.top, 1)
        if self.cap is not None and not self.cap > 0:
            raise UserError(f"cap of a divergence must be positive or None, got {self.cap}")
        unused = type(self)
        if self.support == "vocabulary" and (self.top, self.tail) != (unused.top, unused.tail):
            raise UserError("top and tail of a divergence have no effect with support 'vocabulary'")
        if self.cap is None and self.cap_level != unused.cap_level:
            raise UserError("cap_level of a divergence has no effect without cap")


def divergence(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    spec: Divergence,
    temperature: float = 1.0,
) -> Tensor:
    """The divergence of every token, with its gradient to the student's logits only.

    Args:
        student_logits_NV: logits of the model that learns.
        teacher_logits_NV: logits of its teacher at the same tokens.
        spec: which divergence.
        temperature: the temperature that divides both logits.

    Returns:
        Shape (N,), in nats, of the logits' dtype but at least float32.

    Raises:
        UserError: the shapes differ, or the temperature is not positive.
    """
    check_pair(student_logits_NV.shape, teacher_logits_NV.shape, temperature)
    dtype = working_dtype(student_logits_NV, teacher_logits_NV)
    student_NV, teacher_NV = (
        x.to(dtype).clamp(min=LOWEST) / temperature
        for x in (student_logits_NV, teacher_logits_NV.detach())
    )
    ids_NK = support_ids(student_NV.detach(), teacher_NV, spec)
    log_p_NE = entry_logits(student_NV, ids_NK, spec.tail).log_softmax(-1)
    log_q_NE = entry_logits(teacher_NV, ids_NK, spec.tail).log_softmax(-1)
    return capped_sum(entries(log_p_NE, log_q_NE, spec.alpha), spec)


def check_pair(student: torch.Size, teacher: torch.Size, temperature: float) -> None:
    """Raise UserError unless both models' logits, of these shapes, can be compared."""
    if student != teacher:
        raise UserError(
            f"a divergence needs logits (N, V) of one shape, got {tuple(student)} of the student "
            f"and {tuple(teacher)} of the teacher; give both the same tokens, and slice the larger "
            "head once the tokenizers are known to agree"
        )
    if not temperature > 0:
        raise UserError(f"the temperature of a divergence must be positive, got {temperature}")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the sums: the widest of the tensors', and at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def support_ids(student_NV: Tensor, teacher_NV: Tensor, spec: Divergence) -> Tensor | None:
    """Ids of the support's tokens, shape (N, K); None is the whole vocabulary."""
    if spec.support == "vocabulary" or spec.top >= student_NV.shape[1]:
        return None
    whose_NV = student_NV if spec.support == "student" else teacher_NV
    return whose_NV.topk(spec.top, dim=1, sorted=False).indices


def entry_logits(logits_NV: Tensor, ids_NK: Tensor | None, tail: bool) -> Tensor:
    """Logits whose softmax is the distribution over the entries, shape (N, E).

    The tail's is the log-sum-exp of all logits outside the support; one minus the mass inside, as
    SDPO and TRL have it, loses every digit of a small tail.
    """
    if ids_NK is None:
        return logits_NV
    inside_NK = logits_NV.gather(1, ids_NK)
    if not tail:
        return inside_NK
    outside_N1 = logits_NV.scatter(1, ids_NK, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat((inside_NK, outside_N1), 1)


def entries(log_p_NE: Tensor, log_q_NE: Tensor, alpha: float) -> Tensor:
    """What each entry adds to the divergence, shape (N, E)."""
    if alpha == 0.0:
        return log_q_NE.exp() * (log_q_NE - log_p_NE)
    if alpha == 1.0:
        return log_p_NE.exp() * (log_p_NE - log_q_NE)
    log_m_NE = log_mixture(log_p_NE, log_q_NE, alpha)
    student_NE = (1.0 - alpha) * log_p_NE.exp() * (log_p_NE - log_m_NE)
    return student_NE + alpha * log_q_NE.exp() * (log_q_NE - log_m_NE)


def log_mixture(log_p_NE: Tensor, log_q_NE: Tensor, alpha: float) -> Tensor:
    """``log m``, ``m = (1 - alpha) p + alpha q``, for alpha strictly between 0 and 1."""
    return torch.logaddexp(log_p_NE + math.log1p(-alpha), log_q_NE + math.log(alpha))


def capped_sum(entries_NE: Tensor, spec: Divergence) -> Tensor:
    """The sum over entries, with the cap before it or after it, shape (N,)."""
    if spec.cap is None:
        return entries_NE.sum(1)
    if spec.cap_level == "entry":
        return entries_NE.clamp(max=spec.cap).sum(1)
    return entries_NE.sum(1).clamp(max=spec.cap)
