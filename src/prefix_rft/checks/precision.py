"""Whether a run on a CPU would be faster with products in half precision."""

from __future__ import annotations

import torch

from prefix_rft.checks.findings import Findings
from prefix_rft.engines.setup import Setup

PAYS_FROM = 10_000_000
"""Parameters from which both halves of a step are faster on a CPU that multiplies in bfloat16.

Measured with one thread of a Zen 5 (AVX512-BF16), random Qwen3 models: an update takes 1.4 times as
long in float32 at 0.8 million, 2.2 at 6, 1.9 at 10, 2.2 at 60; sampling 0.7, 1.1, 1.0, and 1.7.
"""


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of matrices in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def advise_precision(setup: Setup, weights: tuple[int, int] | str, findings: Findings) -> None:
    """Note that half precision would be faster, where a recipe says nothing of it.

    Args:
        setup: the resolved recipe.
        weights: the number of weights, and of those that are trained; or why it is not known.
        findings: gets the note.
    """
    if isinstance(weights, str) or setup.engine.RUNS_ITSELF or torch.accelerator.is_available():
        return
    recipe = setup.recipe
    said = {"bf16", "fp16"} & set(recipe.trainer)
    single = "16" not in str(recipe.model_options.get("dtype", "float32"))
    if single and not said and weights[0] >= PAYS_FROM and multiplies_bf16():
        findings.add(
            f"this CPU multiplies in bfloat16, and a model of {weights[0]:,} parameters trains "
            "faster so (weights and optimizer stay in float32)",
            "set bf16: true, or bf16: false to leave it so",
            serious=False,
        )
