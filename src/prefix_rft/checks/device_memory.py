"""Peak accelerator memory of one training process, worked out before anything is loaded.

The process is the one that our trainers run: a dense decoder with full weights on one device,
AdamW, and sampling with transformers between steps. Rows are packed (``engines/packed``), or whole
as in TRL.
With an adapter only its weights have gradients and moments; its own activations are not counted,
and those of the base are, as if it were trained. A vLLM engine, mixtures of experts and sharding
over devices are out of scope.

All sizes are bytes. Not counted: the context of the device (about half a GiB with CUDA), gaps of
the allocator, and work space of single kernels. ``benchmarks/memory.py`` compares with reality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefix_rft.checks.update_memory import (
    FLOAT32,
    ModelSize,
    PackedSize,
    attends_in,
    layer_bytes,
    logits_bytes,
    packed_layer_bytes,
    packed_logits_bytes,
)
from prefix_rft.engines.drawing import NEAR
from prefix_rft.engines.models import without_weights

STATIC = ("weights", "optimizer", "reference model", "cast weights")
FORWARD = ("activations", "logits")
SAMPLING = ("sampling cache", "sampling logits")


@dataclass(frozen=True)
class Memory:
    """Bytes of each part, and of the two phases of a step, which do not overlap.

    A part that does not apply is absent. Gradients are freed after the optimizer step
    (``zero_grad`` sets them to None), so there are none while rows are sampled, nor while the first
    micro-batch goes forward: they grow as its activations go.

    Attributes:
        parts: bytes by name.
        accumulates: a step has several micro-batches, which add to the gradients of the first.
    """

    parts: dict[str, int]
    accumulates: bool = True

    @property
    def training(self) -> int:
        """Bytes while a micro-batch is trained, everything static included."""
        gradients, forward = self._sum(("gradients",)), self._sum(FORWARD)
        both = gradients + forward if self.accumulates else max(gradients, forward)
        return self._sum(STATIC) + both

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


def has_head_norms(config: Any) -> bool:
    """Whether the model of a transformers config normalises queries and keys, as Qwen3 does.

    Raises:
        UncountedError: transformers has no causal language model for this config.
    """
    return any("q_norm" in name for name, _ in without_weights(config).named_parameters())


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
    packed: int | None = None,
    head_norms: bool = True,
    accumulates: bool = True,
) -> Memory:
    """Memory of a run whose rows are all of full length, as on the worst batch.

    - ``weights``, ``gradients``, ``optimizer``: gradients and AdamW's two moments have the dtype of
      the weights, so 4 + 4 + 8 bytes per parameter in float32. A micro-batch finds the gradients of
      those before it. The fused AdamW, transformers' default, takes no work space.
    - ``cast weights``: autocast keeps a copy of the weights in the compute dtype during a forward,
      and autograd until the backward. All weights are counted, embeddings too.
    - ``activations``: see :func:`layer_bytes` and :func:`packed_layer_bytes`; of all layers, or
      with checkpointing the inputs of all layers and the whole of one.
    - ``logits``: see :func:`logits_bytes` and :func:`packed_logits_bytes`. That every completion
      token is scored, and every row has a gradient, is the worst case here, too.
    - ``sampling cache``: keys and values of all rows at full length, in the compute dtype.
    - ``sampling logits``: of one position, in the compute dtype and in float32; their softmax in
      float32, and its distribution function in float64. Without Triton, which is to say on a CPU,
      all but the first are made of a few rows at a time.

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
        packed: the rows that may share a prompt, 1 where none do; None where rows are whole.
        head_norms: the model normalises queries and keys, see :func:`has_head_norms`.
        accumulates: a step has several micro-batches.

    Raises:
        UserError: the config lacks a field, or the model is no plain dense decoder.
    """
    shape = ModelSize.read(config)
    length = prompt_length + completion_length
    if packed is None:
        tokens = micro_batch_size * length
        scored = micro_batch_size * (completion_length if triton else length - 1)
        layer = tokens * layer_bytes(shape, length, weight_bytes, compute_bytes, head_norms)
        once, states = 0, weight_bytes
        logits = logits_bytes(shape, scored, weight_bytes, compute_bytes, triton)
    else:
        rows = PackedSize.of(micro_batch_size, packed, prompt_length, completion_length)
        tokens, scored = rows.tokens, micro_batch_size * completion_length
        device = "cuda" if triton else "cpu"
        layer = packed_layer_bytes(shape, rows, weight_bytes, compute_bytes, device, head_norms)
        once, states = rows.mask * attends_in(device, compute_bytes), compute_bytes
        if triton:
            logits = logits_bytes(shape, scored, weight_bytes, compute_bytes, triton)
        else:
            logits = packed_logits_bytes(shape, scored, weight_bytes, compute_bytes)
    last = tokens * shape.hidden * (FLOAT32 + weight_bytes) + scored * shape.hidden * states
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
    parts["activations"] = layers + last + once
    parts["logits"] = logits
    if samples:
        entries = shape.layers * shape.kv_width * generation_rows * length
        parts["sampling cache"] = 2 * compute_bytes * entries
        of_all, of_some = compute_bytes, 2 * FLOAT32 + 8
        together = generation_rows if triton else min(generation_rows, max(1, NEAR // shape.vocab))
        parts["sampling logits"] = shape.vocab * (of_all * generation_rows + of_some * together)
    return Memory(parts, accumulates)
