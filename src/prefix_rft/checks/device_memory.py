"""Peak accelerator memory of one training process, worked out before anything is loaded.

The process is the one that TRL's trainers run: a dense decoder with full weights on one device,
AdamW, several micro-batches for each optimizer step, and sampling with transformers between steps.
With an adapter only its weights have gradients and moments; its own activations are not counted,
and those of the base are, as if it were trained. A vLLM engine, mixtures of experts and sharding
over devices are out of scope.

All sizes are bytes. Not counted: the context of the device (about half a GiB with CUDA), gaps of
the allocator, and work space of single kernels. ``benchmarks/memory.py`` compares with reality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefix_rft.engines.models import without_weights
from prefix_rft.support.errors import UserError

FLOAT32, FLOAT64 = 4, 8
TILE_TOKENS, TILE_VOCAB = 4096, 32768
"""Tile of logits in TRL 1.16: kernels/chunked_logprob.py, and its caller in trainer/utils.py."""

STATIC = ("weights", "optimizer", "reference model", "cast weights")
TRAINING = ("gradients", "activations", "logits")
SAMPLING = ("sampling cache", "sampling logits")


@dataclass(frozen=True)
class Memory:
    """Bytes of each part, and of the two phases of a step, which do not overlap.

    A part that does not apply is absent. Gradients are freed after the optimizer step
    (``zero_grad`` sets them to None), so there are none while rows are sampled.
    """

    parts: dict[str, int]

    @property
    def training(self) -> int:
        """Bytes while a micro-batch is trained, everything static included."""
        return self._sum(STATIC + TRAINING)

    @property
    def sampling(self) -> int:
        """Bytes while rows are sampled, everything static included."""
        return self._sum(STATIC + SAMPLING)

    @property
    def peak(self) -> int:
        """Bytes of the larger phase."""
        return max(self.training, self.sampling)

    def _sum(self, names: tuple[str, ...]) -> int:
        return sum(self.parts.get(name, 0) for name in names)


def count_parameters(config: Any) -> int:
    """Parameters of the causal language model of a transformers config, tied ones counted once.

    Raises:
        UncountedError: transformers has no causal language model for this config.
    """
    return sum(p.numel() for p in without_weights(config).parameters())


def estimate(
    config: Any,
    *,
    parameters: int,
    trained: int | None = None,
    micro_batch_size: int,
    generation_rows: int,
    prompt_length: int,
    completion_length: int,
    weight_bytes: int = 4,
    compute_bytes: int = 4,
    activation_checkpointing: bool = False,
    reference_model: bool = False,
    samples: bool = True,
    triton: bool = True,
) -> Memory:
    """Memory of a run whose rows are all of full length, as on the worst batch.

    - ``weights``, ``gradients``, ``optimizer``: gradients and AdamW's two moments have the dtype of
      the weights, so 4 + 4 + 8 bytes per parameter in float32. A micro-batch finds the gradients of
      those before it. The fused AdamW, transformers' default, takes no work space.
    - ``cast weights``: autocast keeps a copy of the weights in the compute dtype during a forward,
      and autograd until the backward. All weights are counted, embeddings too.
    - ``activations``: see :func:`layer_bytes`; of all layers, or with checkpointing the inputs of
      all layers and the whole of one.
    - ``logits``: see :func:`logits_bytes`.
    - ``sampling cache``: keys and values of all rows at full length, in the compute dtype.
    - ``sampling logits``: of one position, in the compute dtype and in float32; their softmax in
      float32, and its distribution function in float64.

    Args:
        config: a transformers config, or one that nests the text model's.
        parameters: the number of the model's parameters, from :func:`count_parameters`.
        trained: how many of them are trained; all of them by default.
        micro_batch_size: rows in one forward and backward.
        generation_rows: rows sampled at the same time.
        prompt_length: tokens of the longest prompt.
        completion_length: tokens of the longest completion.
        weight_bytes: the bytes of one weight.
        compute_bytes: the bytes of one number in matrix products; 2 with bf16 or fp16 mixed
            precision.
        activation_checkpointing: layers are run again in the backward.
        reference_model: a second, frozen copy of the weights (``beta`` above 0).
        samples: rows are sampled in this process with transformers.
        triton: logits are folded by TRL's Triton kernels (CUDA and XPU), not by torch.

    Raises:
        UserError: the config lacks a field, or the model is no plain dense decoder.
    """
    shape = _ModelSize.read(config)
    length = prompt_length + completion_length
    tokens = micro_batch_size * length
    scored = micro_batch_size * (completion_length if triton else length - 1)
    layer = tokens * layer_bytes(shape, length, weight_bytes, compute_bytes)
    last = tokens * shape.hidden * (FLOAT32 + weight_bytes) + scored * shape.hidden * weight_bytes
    if activation_checkpointing:
        layers = shape.layers * tokens * shape.hidden * weight_bytes + layer
    else:
        layers = shape.layers * layer
    trained = parameters if trained is None else trained
    parts = {
        "weights": weight_bytes * parameters,
        "gradients": weight_bytes * trained,
        "optimizer": 2 * weight_bytes * trained,
    }
    if reference_model:
        parts["reference model"] = weight_bytes * parameters
    if compute_bytes != weight_bytes:
        parts["cast weights"] = compute_bytes * parameters
    parts["activations"] = layers + last
    parts["logits"] = logits_bytes(shape, scored, weight_bytes, compute_bytes, triton)
    if samples:
        entries = shape.layers * shape.kv_width * generation_rows * length
        parts["sampling cache"] = 2 * compute_bytes * entries
        a_logit = compute_bytes + 2 * FLOAT32 + FLOAT64
        parts["sampling logits"] = a_logit * generation_rows * shape.vocab
    return Memory(parts)


def layer_bytes(shape: _ModelSize, length: int, weight_bytes: int, compute_bytes: int) -> int:
    """Bytes per token that autograd keeps for the backward of one layer.

    Counted as in Korthikanti et al., arXiv 2205.05198, section 4.1 (their eq. 1 is
    ``s b h (34 + 5 a s / h)``), for the layers of Llama and Qwen3 as transformers writes them and
    scaled-dot-product attention, which keeps no T x T scores:

    - two RMSNorms: each keeps its input in float32 and the normalised input; the output is kept
      once by the linear layers that read it, or, where autocast casts it, once by each of the five.
    - norms of queries and keys (Qwen3), kept alike. A config does not say whether the model has
      them, so they are always counted, up to an eighth too much for a model without.
    - attention: queries, keys and values repeated to the heads of the queries, output, float32
      log-sum-exp of each head, and one row of the mask. transformers repeats the keys, and torch
      turns the mask into numbers in each layer, as soon as one row of the batch is padded.
    - gated MLP: gate, its activation, up, and their product.
    """
    copies = 2 if compute_bytes == weight_bytes else 5
    norms = shape.hidden * (2 * (FLOAT32 + weight_bytes) + copies * compute_bytes)
    head_norms = (shape.width + shape.kv_width) * (FLOAT32 + compute_bytes)
    attention = compute_bytes * (4 * shape.width + length) + FLOAT32 * shape.heads
    return norms + head_norms + attention + compute_bytes * 4 * shape.intermediate


def logits_bytes(
    shape: _ModelSize, scored: int, weight_bytes: int, compute_bytes: int, triton: bool
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
class _ModelSize:
    """The sizes of a decoder; ``width`` is that of all queries of a token, ``kv_width`` of keys."""

    hidden: int
    layers: int
    heads: int
    width: int
    kv_width: int
    intermediate: int
    vocab: int

    @classmethod
    def read(cls, config: Any) -> _ModelSize:
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
