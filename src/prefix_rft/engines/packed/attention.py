"""Attention over packed rows, for models that leave their attention to transformers.

transformers calls it in place of ``sdpa`` or ``eager`` while a model is inside :func:`packed`; the
layout comes through the model as a keyword. Queries and keys have their rotations by then, so
positions that begin anew behind every prompt are all that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prefix_rft.engines.packed.layout import Layout

NAME = "prefix_rft_packed"
FAST_WITH_MASK = ("cpu",)
"""Devices whose fast kernel repeats keys and values by itself, where there is a mask."""


def computed_in(device: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which states of a type attend on a device.

    Flash attention of CPUs is faster in float32 than in bfloat16, whose backward it does badly.
    """
    return torch.promote_types(dtype, torch.float32) if device == "cpu" else dtype


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Outputs (1, N, heads, D) of queries (1, heads, N, D) and of keys and values of fewer heads.

    Args:
        module: the layer of attention; unused.
        query: queries of all packed tokens, rotated.
        key: their keys, rotated.
        value: their values.
        attention_mask: unused, the layout says what is masked.
        scaling: factor of the scores.
        dropout: its rate, which must be 0.
        layout: where the tokens lie.
        kwargs: what transformers hands to every kind of attention.

    Raises:
        RuntimeError: the model drops, or the layout was lost on the way.
    """
    if layout is None or dropout:
        raise RuntimeError("packed rows need their layout in every layer, and no dropout")
    device, wanted = query.device, value.dtype
    compute = computed_in(device.type, wanted)
    with torch.autocast(device.type, enabled=False):
        query_NHD, key_NKD, value_NKD = (
            x[0].transpose(0, 1).to(compute) for x in (query, key, value)
        )
        outputs = []
        for block in layout.blocks:
            q, k, v = (
                _take(x, places).transpose(1, 2)
                for x, places in (
                    (query_NHD, block.query_BC),
                    (key_NKD, block.key_BL),
                    (value_NKD, block.key_BL),
                )
            )
            mask = block.mask_BCL
            if mask is not None and mask.dtype != torch.bool:
                mask = mask.to(compute)
            groups = q.size(1) // k.size(1)
            itself = groups == 1 or mask is None or device.type in FAST_WITH_MASK
            if not itself:
                k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            output = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if mask is None else mask[:, None],
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=itself and groups > 1,
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        output_NHD = _take(torch.cat(outputs), layout.output_N)
    return output_NHD.to(wanted)[None], None


def _take(x: Tensor, places: Tensor) -> Tensor:
    """``x[places]``, by whichever kernel has a fast backward that always adds in one order."""
    if x.device.type == "cpu":
        return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:])
    return x[places]


AttentionInterface.register(NAME, attention)


@contextmanager
def packed(config: Any) -> Iterator[None]:
    """Have the model of this config attend over packed rows; its layers need a layout then.

    A backward that computes layers again (activation checkpointing) belongs inside, too.
    """
    text = config.get_text_config()
    before = text._attn_implementation
    text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = before
