"""What the layers and the vocabulary head keep for the backward of a micro-batch, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prefix_rft.engines.packed.attention import FAST_WITH_MASK, computed_in
from prefix_rft.engines.packed.head import CHUNK
from prefix_rft.support.errors import UserError

FLOAT32 = 4
TILE_TOKENS, TILE_VOCAB = 4096, 32768
"""Tile of logits in TRL 1.16: kernels/chunked_logprob.py, and its caller in trainer/utils.py."""


@dataclass(frozen=True)
class PackedSize:
    """What the rows of a micro-batch come to, packed.

    Attributes:
        tokens: those that the layers see.
        shared: those of prompts that several rows share, and of whole rows: no mask, keys once.
        behind: keys that tokens behind a shared prompt look at, the prompt's counted for each row.
        mask: entries of their mask.
    """

    tokens: int
    shared: int
    behind: int
    mask: int

    @classmethod
    def of(cls, rows: int, group: int, prompt: int, completion: int) -> PackedSize:
        """Rows of full length, ``group`` of them for each prompt, at a place that costs most."""
        if group == 1 or rows == 1:
            tokens = rows * (prompt + completion)
            return cls(tokens, tokens, 0, 0)
        aligned = rows % group == 0 or group % rows == 0
        prompts = min(rows, -(-rows // group) + (not aligned))
        shared, row = prompts * prompt, prompt + completion
        return cls(shared + rows * completion, shared, rows * row, rows * completion * row)


def packed_layer_bytes(
    shape: ModelSize,
    rows: PackedSize,
    weight_bytes: int,
    compute_bytes: int,
    device: str,
    head_norms: bool,
) -> int:
    """Bytes that autograd keeps for the backward of one layer over packed rows.

    Norms and MLP as in :func:`layer_bytes`. Attention keeps queries, outputs and the log-sum-exp of
    each head, and keys and values; on a CPU it computes in float32. A row behind a shared prompt
    keeps its own copy of the prompt's keys, repeated to the heads of the queries where the fast
    kernel does not do it. The outputs are kept once more by the layer that reads them. One mask
    serves all layers.
    """
    attends = attends_in(device, compute_bytes)
    a_token = _row_wise(shape, weight_bytes, compute_bytes, head_norms)
    a_token += 2 * attends * shape.width + FLOAT32 * shape.heads + compute_bytes * shape.width
    behind = shape.kv_width if device in FAST_WITH_MASK else shape.width
    keys = 2 * attends * (rows.shared * shape.kv_width + rows.behind * behind)
    return rows.tokens * a_token + keys


def attends_in(device: str, compute_bytes: int) -> int:
    """Bytes of a number in attention over packed rows."""
    return computed_in(device, torch.bfloat16 if compute_bytes == 2 else torch.float32).itemsize


def packed_logits_bytes(
    shape: ModelSize, scored: int, weight_bytes: int, compute_bytes: int
) -> int:
    """Bytes for log-probs of ``scored`` positions on a CPU, at the peak: ``engines/packed/head``.

    Logits are made chunk by chunk. The forward holds a chunk twice in float32; the backward once,
    and in the compute dtype, beside float32 gradients of the head and gradients of the hidden
    states. A loss that acts on entropies takes a chunk more, which is not counted.
    """
    chunk = min(scored, max(1, CHUNK // shape.vocab)) * shape.vocab
    cast = 0 if compute_bytes == weight_bytes else compute_bytes
    head = shape.vocab * shape.hidden * FLOAT32 + scored * shape.hidden * compute_bytes
    return max(2 * FLOAT32 * chunk, head + (FLOAT32 + cast) * chunk)


def layer_bytes(
    shape: ModelSize, length: int, weight_bytes: int, compute_bytes: int, head_norms: bool
) -> int:
    """Bytes per token that autograd keeps for the backward of one layer over whole rows.

    Counted as in Korthikanti et al., arXiv 2205.05198, section 4.1 (their eq. 1 is
    ``s b h (34 + 5 a s / h)``), for the layers of Llama and Qwen3 as transformers writes them and
    scaled-dot-product attention, which keeps no T x T scores:

    - two RMSNorms: each keeps its input in float32 and the normalised input; the output is kept
      once by the linear layers that read it, or, where autocast casts it, once by each of the five.
    - norms of queries and keys, where there are any, kept alike.
    - attention: queries, keys and values repeated to the heads of the queries, output, float32
      log-sum-exp of each head, and one row of the mask. transformers repeats the keys, and torch
      turns the mask into numbers in each layer, as soon as one row of the batch is padded.
    - gated MLP: gate, its activation, up, and their product.
    """
    attention = compute_bytes * (4 * shape.width + length) + FLOAT32 * shape.heads
    return _row_wise(shape, weight_bytes, compute_bytes, head_norms) + attention


def _row_wise(shape: ModelSize, weight_bytes: int, compute_bytes: int, head_norms: bool) -> int:
    """Bytes per token of norms and MLP."""
    copies = 2 if compute_bytes == weight_bytes else 5
    norms = shape.hidden * (2 * (FLOAT32 + weight_bytes) + copies * compute_bytes)
    if head_norms:
        norms += (shape.width + shape.kv_width) * (FLOAT32 + compute_bytes)
    return norms + compute_bytes * 4 * shape.intermediate


def logits_bytes(
    shape: ModelSize, scored: int, weight_bytes: int, compute_bytes: int, triton: bool
) -> int:
    """Bytes for the log-probs and entropies of ``scored`` positions, at the peak of the backward.

    TRL 1.16 (``add_fused_lm_head``, used by ``_get_per_token_logps_and_entropies``) never holds
    logits of ``[rows, completion, vocabulary]``. It goes through tiles of at most 4096 positions by
    32768 tokens in the compute dtype, keeps only hidden states and two float32 numbers for each
    position, and computes each tile again in the backward. There it also holds float32 gradients
    of the hidden states and of the whole head, before that one is added to the others.

    Without Triton torch folds a tile with seven float32 copies and a mask of one byte, and scores
    the prompt too.
    """
    rows, vocab = min(scored, TILE_TOKENS), min(shape.vocab, TILE_VOCAB)
    tile = rows * TILE_VOCAB * compute_bytes
    if compute_bytes != weight_bytes:
        tile += vocab * shape.hidden * compute_bytes
    if not triton:
        tile += rows * vocab * (7 * FLOAT32 + 1)
    return tile + (scored + shape.vocab) * shape.hidden * FLOAT32


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a decoder; ``width`` is that of all queries of a token, ``kv_width`` of keys."""

    hidden: int
    layers: int
    heads: int
    width: int
    kv_width: int
    intermediate: int
    vocab: int

    @classmethod
    def read(cls, config: Any) -> ModelSize:
        """Read the usual names of a config; transformers' own rules where a field may be absent."""
        text = config.get_text_config()

        def field(name: str, default: int | None = None) -> int:
            value = getattr(text, name, None)
            value = default if value is None else value
            if not isinstance(value, int):
                raise UserError(
                    f"the memory of model type '{text.model_type}' cannot be estimated: "
                    f"its config has no whole number '{name}'"
                )
            return value

        for name in ("num_experts", "num_local_experts", "n_routed_experts"):
            if getattr(text, name, None):
                raise UserError(
                    f"the memory of model type '{text.model_type}' cannot be estimated: "
                    f"it is a mixture of experts ('{name}'), only dense models are counted"
                )
        for kind in getattr(text, "layer_types", None) or ():
            if not kind.endswith(("full_attention", "sliding_attention", "chunked_attention")):
                raise UserError(
                    f"the memory of model type '{text.model_type}' cannot be estimated: "
                    f"it has layers of type '{kind}', only layers with attention are counted"
                )
        hidden, heads = field("hidden_size"), field("num_attention_heads")
        head = field("head_dim", hidden // heads)
        return cls(
            hidden=hidden,
            layers=field("num_hidden_layers"),
            heads=heads,
            width=heads * head,
            kv_width=field("num_key_value_heads", heads) * head,
            intermediate=field("intermediate_size"),
            vocab=field("vocab_size"),
        )
