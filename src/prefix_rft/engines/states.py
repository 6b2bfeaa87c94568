"""What a model says of tokens before its head makes logits of it, and how far two models are apart.

A divergence over the vocabulary needs the hidden states and the head of both models, inside the
forward of the one that learns: there a wrapped model has its weights.

Shape letters: M tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from prefix_rft.core.chunked_divergence import ChunkedDivergence
from prefix_rft.core.divergence import Divergence
from prefix_rft.engines.cached_model import base_of
from prefix_rft.engines.packed.head import TRITON
from prefix_rft.support.errors import UserError

FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""What configs call the factor of their logits (Cohere, Muse Glimmer, Falcon-H1)."""


@dataclass(frozen=True)
class States:
    """Last hidden states before some tokens, and the head that makes logits of them.

    Attributes:
        hidden_MH: the hidden states.
        weight_VH: the weight of the head.
        bias_V: its bias, or None.
        scale: the factor of the logits.
        softcap: their cap; None where there is none.
    """

    hidden_MH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def at(self, which_M: Tensor) -> States:
        """The states of some of the tokens.

        Args:
            which_M: bool, the tokens.
        """
        return replace(self, hidden_MH=self.hidden_MH[which_M])

    def kept(self, copy: bool) -> States:
        """The same without a gradient, for later.

        Args:
            copy: whether the head is about to get other weights, so that a copy of it is kept.
        """
        weight_VH = self.weight_VH.detach()
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        if copy:
            weight_VH, bias_V = weight_VH.clone(), None if bias_V is None else bias_V.clone()
        hidden_MH = self.hidden_MH.detach()
        return replace(self, hidden_MH=hidden_MH, weight_VH=weight_VH, bias_V=bias_V)


Beside = Callable[[States], Any]
"""Makes something of the states of the wanted tokens, inside a model's forward."""


def states_of(model: Any, hidden_MH: Tensor) -> States:
    """Hidden states with a model's head.

    Args:
        model: a causal language model without an adapter around it.
        hidden_MH: its last hidden states.
    """
    head: nn.Linear = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    return States(hidden_MH, head.weight, head.bias, factor_of(config), softcap)


def factor_of(config: Any) -> float:
    """The factor of a model's logits, whatever its config calls it; 1 where there is none.

    Args:
        config: the text model's.
    """
    for name in FACTORS:
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)  # Granite's; HyperCLOVA X multiplies by it
    if divisor is None:
        return 1.0
    return float(divisor if config.model_type == "hyperclovax" else 1.0 / divisor)


def add_states(model: Any) -> None:
    """Let ``model(..., beside=f, wanted_BT=mask)`` return the usual output and what f makes.

    f gets the states before the wanted tokens, the last T of the input. Without ``beside`` the
    forward is the model's own.

    Args:
        model: a causal language model, with or without an adapter, neither sharded nor wrapped.
    """
    base = base_of(model)
    original = base.forward

    @functools.wraps(type(base).forward)
    def forward(
        self: Any, *args: Any, beside: Beside | None = None, wanted_BT: Any = None, **kwargs: Any
    ) -> Any:
        if beside is None:
            return original(*args, **kwargs)
        caught: list[Tensor] = []

        def catch(module: Any, inputs: Any, out: Any) -> None:
            caught.append(out.last_hidden_state)

        hook = self.base_model.register_forward_hook(catch)
        try:
            out = original(*args, **kwargs)
        finally:
            hook.remove()
        hidden_MH = caught[0][:, -wanted_BT.size(1) - 1 : -1][wanted_BT]
        return out, beside(states_of(self, hidden_MH))

    base.forward = types.MethodType(forward, base)


def compared(student: States, teacher: States, spec: Divergence, temperature: float) -> Tensor:
    """The divergence of each token, shape (M,), with its gradient to the student alone.

    Where one head has more rows than the other, those beyond stand for no token: embeddings are
    padded. The tokenizers are known to agree.

    Args:
        student: the states of the model that learns.
        teacher: the teacher's at the same tokens.
        spec: which divergence.
        temperature: the temperature that divides both logits.

    Raises:
        UserError: the heads are of other models.
    """
    sizes = [len(x.weight_VH) for x in (student, teacher)]
    if max(sizes) > 1.05 * min(sizes):
        raise UserError(f"student and teacher have heads of {sizes[0]} and {sizes[1]} tokens")
    student, teacher = (
        x if len(x.weight_VH) == min(sizes) else _cut(x, min(sizes)) for x in (student, teacher)
    )
    heads = [(x.hidden_MH, x.weight_VH, x.bias_V) for x in (student, teacher)]
    scales = student.scale, student.softcap, teacher.scale, teacher.softcap
    plain = spec.support == "vocabulary" and spec.cap is None
    if plain and student.hidden_MH.device.type in TRITON:
        function = ChunkedDivergenceFunction
        return function.apply(*heads[0], *heads[1], spec.alpha, temperature, *scales)[0]
    return ChunkedDivergence.apply(*heads[0], *heads[1], spec, temperature, *scales)


def _cut(states: States, size: int) -> States:
    bias_V = None if states.bias_V is None else states.bias_V[:size]
    return replace(states, weight_VH=states.weight_VH[:size], bias_V=bias_V)
