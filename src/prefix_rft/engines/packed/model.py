"""A causal language model of transformers that scores packed rows."""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefix_rft.engines.cached_model import base_of
from prefix_rft.engines.packed.attention import NAME, computed_in, packed
from prefix_rft.engines.packed.head import log_probs
from prefix_rft.engines.packed.layout import Layout, additive, pack
from prefix_rft.engines.states import Beside, states_of

ALIKE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far packed hidden states may be off those of whole rows, beside their norm, by precision."""
ALIKE_ROUNDED = 0.05
"""The same in half precision."""


@dataclass(frozen=True)
class PackedRows:
    """What a packed forward is asked for.

    Attributes:
        layout: the rows.
        temperature: the temperature of the log-probs.
        entropy: whether entropies are wanted.
        beside: what else is to be made of the states of the wanted tokens.
    """

    layout: Layout
    temperature: float
    entropy: bool
    beside: Beside | None = None


def why_not(config: Any, model_class: type) -> str | None:
    """Why models of a class and config cannot score packed rows; None where nothing speaks against.

    Args:
        config: the model's.
        model_class: its class in transformers.
    """
    text = config.get_text_config()
    if config is not text:
        return "it has more than a text model"
    if not getattr(model_class, "_supports_attention_backend", False):
        return "it does its attention by itself"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if kinds - {"full_attention"} or (not kinds and window):
        return "not all its layers attend to everything before"
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(text, name, None):
            return f"its scores are bent ({name})"
    for name in ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        if getattr(text, name, None) not in (None, 1.0):
            return f"its logits are scaled ({name})"
    return None


def add_packed_forward(model: Any) -> str | None:
    """Let ``model(packed=PackedRows)`` return log-probs and entropies, if the model can be packed.

    What else is asked for comes third.

    The model is asked about two rows, both packed and whole, before it is believed.

    Args:
        model: a causal language model, with or without an adapter, neither sharded nor wrapped.

    Returns:
        Why rows stay whole, in words; None where they are packed.
    """
    base = base_of(model)
    reason = why_not(base.config, type(base)) or _odd_adapter(model)
    head = base.get_output_embeddings()
    if reason is None and (type(head) is not nn.Linear or head.bias is not None):
        reason = "its vocabulary head is no plain matrix"
    if reason is None and not _agrees(base):
        reason = "its packed rows come out otherwise than whole ones"
    if reason is None:
        _patch(base)
    return reason


def _odd_adapter(model: Any) -> str | None:
    adapters = getattr(model, "peft_config", {}).values()
    if any(adapter.is_prompt_learning for adapter in adapters):
        return "its adapter puts tokens of its own in front"
    return None


def _patch(model: Any) -> None:
    """As TRL's fused head does it: on the instance, since DDP and PEFT call the model itself."""
    original = model.forward

    # ``generate`` and the trainer read the signature.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, packed: PackedRows | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return original(*args, **kwargs)
        layout = packed.layout
        states = states_of(self, _hidden(self, layout)[layout.before_M])
        rest = layout.target_M, packed.temperature, packed.entropy
        scores = log_probs(states.hidden_MH, states.weight_VH, *rest)
        return scores if packed.beside is None else (*scores, packed.beside(states))

    model.forward = types.MethodType(forward, model)


def _hidden(model: Any, layout: Layout) -> Tensor:
    """Last hidden states (N, H); the model must be inside :func:`packed`."""
    if model.config.get_text_config()._attn_implementation != NAME:
        raise RuntimeError("packed rows need a model inside packed(): its own attention mixes them")
    device, states = layout.ids_N.device.type, model.get_output_embeddings().weight.dtype
    if torch.is_autocast_enabled(device):
        states = torch.get_autocast_dtype(device)
    out = model.base_model(
        input_ids=layout.ids_N[None],
        position_ids=layout.position_N[None],
        # Of four dimensions, so that transformers makes none of its own.
        attention_mask=layout.ids_N.new_ones(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        layout=additive(layout, computed_in(device, states)),
    )
    return out.last_hidden_state[0]


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """Whether hidden states of two packed rows and a single one are those of the rows alone."""
    weight = model.get_output_embeddings().weight
    V, device = len(weight), weight.device
    prompts = [[3 % V, 5 % V, 7 % V], [3 % V, 5 % V, 7 % V], [2 % V]]
    completion_BT = (torch.arange(15, device=device).view(3, 5) * 11 + 1) % V
    wanted_BT = torch.ones_like(completion_BT, dtype=torch.bool)
    wanted_BT[1, 3:] = False
    layout = pack(prompts, completion_BT, wanted_BT)
    with torch.autocast(device.type, enabled=False):
        with packed(model.config):
            packed_MH = _hidden(model, layout)[layout.before_M]
        whole = []
        for prompt, own, wanted in zip(prompts, completion_BT, wanted_BT, strict=True):
            ids = torch.cat([torch.tensor(prompt, device=device), own])
            hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            whole.append(hidden[len(prompt) - 1 : -1][wanted])
    whole_MH = torch.cat(whole)
    off = (packed_MH - whole_MH).float().norm() / whole_MH.float().norm()
    return bool(off < ALIKE.get(whole_MH.dtype, ALIKE_ROUNDED))
