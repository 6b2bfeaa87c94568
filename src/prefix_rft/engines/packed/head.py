"""Log-probs and entropies of wanted tokens, without logits of all of them at once.

The vocabulary head is a matrix product of (M, hidden) with (hidden, V). Logits are made in chunks
of tokens and again in the backward, so that memory is one chunk, whatever M is. Products are in the
precision of the model's (autocast's, where there is one), sums over the vocabulary in float32.

On devices with Triton kernels TRL's function does the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

CHUNK = 2**25
"""The most logits at once; 128 MiB in float32."""
TRITON = ("cuda", "xpu")
TRL_VOCAB = 32768
"""Logits of a tile of TRL's, as its own caller has it (trl/trainer/utils.py of TRL 1.16)."""


def log_probs(
    hidden_MH: Tensor, head_VH: Tensor, target_M: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the targets, and entropies in nats, of ``softmax(hidden head' / temperature)``.

    Args:
        hidden_MH: last hidden states at the tokens before the targets.
        head_VH: the weight of the vocabulary head.
        target_M: token ids.
        temperature: the temperature of the rollouts.
        entropy: whether entropies are wanted.

    Returns:
        Two tensors of shape (M,), float32 or wider, both with gradient.
    """
    if hidden_MH.device.type in TRITON:
        names = ("entropy",) if entropy else ()
        out = ChunkedLogProbFunction.apply(
            hidden_MH, head_VH, None, target_M, temperature, TRL_VOCAB, None, 1.0, names
        )
        return out[0], out[1]
    logp_M, entropy_M = _Chunked.apply(hidden_MH, head_VH, target_M, temperature, entropy)
    return logp_M, entropy_M if entropy else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        head_VH: Tensor,
        target_M: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden_MH.device.type
        cast = torch.is_autocast_enabled(device)
        compute = torch.get_autocast_dtype(device) if cast else hidden_MH.dtype
        hidden, head = hidden_MH.to(compute), head_VH.to(compute)
        logp, entropies, log_z = [], [], []
        for part in _parts(len(target_M), len(head)):
            z = _logits(hidden[part], head, temperature)
            norm = z.logsumexp(1)
            logp.append(z.gather(1, target_M[part, None])[:, 0] - norm)
            if entropy:
                z -= norm[:, None]
                entropies.append(-z.exp().mul_(z).sum(1))
            log_z.append(norm)
            del z  # or it would still be there beside the next one
        out = torch.cat(logp) if logp else hidden.new_zeros(0, dtype=torch.float32)
        entropy_M = (torch.cat(entropies) if entropies else out.clone()) if entropy else None
        norms = torch.cat(log_z) if log_z else out.clone()
        ctx.save_for_backward(hidden, head, target_M, norms, entropy_M)
        ctx.temperature, ctx.dtypes = temperature, (hidden_MH.dtype, head_VH.dtype)
        ctx.set_materialize_grads(False)
        return out, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, head, target_M, log_z, entropy_M = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums over chunks in bfloat16 would be biased.
        wide = torch.promote_types(ctx.dtypes[1], torch.float32)
        to_head = torch.zeros(head.shape, dtype=wide, device=head.device) if wants_head else None
        for part in _parts(len(target_M), len(head)):
            z = _logits(hidden[part], head, ctx.temperature).sub_(log_z[part, None])
            # d log p_target / dz_j = [j = target] - p_j;  dH / dz_j = -p_j (log p_j + H)
            factor = torch.zeros_like(log_z[part]) if grad_logp is None else grad_logp[part]
            if grad_entropy is None:
                grad = z.exp_().mul_(-factor[:, None])
            else:
                outer = (z + entropy_M[part, None]).mul_(-grad_entropy[part, None])
                grad = z.exp_().mul_(outer.sub_(factor[:, None]))
                del outer
            grad.scatter_add_(1, target_M[part, None], factor[:, None].to(grad.dtype))
            if ctx.temperature != 1.0:
                grad /= ctx.temperature
            grad = grad.to(hidden.dtype)
            del z  # or its logits would still be there beside the next ones
            if to_hidden is not None:
                torch.mm(grad, head, out=to_hidden[part])
            if to_head is not None:
                to_head += grad.T @ hidden[part]
            del grad
        return (
            None if to_hidden is None else to_hidden.to(ctx.dtypes[0]),
            None if to_head is None else to_head.to(ctx.dtypes[1]),
            None,
            None,
            None,
        )


def _parts(M: int, V: int) -> list[slice]:
    size = max(1, CHUNK // V)
    return [slice(i, i + size) for i in range(0, M, size)]


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    z = hidden @ head.T
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    return wide if temperature == 1.0 else wide.div_(temperature)
