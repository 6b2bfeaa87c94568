"""Numbers of TRL's configurations that mean something, so that others are refused at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, which are among the numbers unless they are ``open``."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in it; NaN never is."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            words = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        else:
            left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
            words = f"in {left}{self.low:g}, {self.high:.10g}{right}"
        return words + self.hint


NOT_NEGATIVE, POSITIVE, COUNT = Range(0), Range(0, low_open=True), Range(1)
SHARE, BETA = Range(0, 1), Range(0, 1, high_open=True)
SEED = Range(0, 2**32 - 1)
PORT = Range(1, 65535)

RANGES: dict[str, Range] = {
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"), NOT_NEGATIVE
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), BETA),
    "warmup_steps": NOT_NEGATIVE,
    **dict.fromkeys(("seed", "data_seed"), SEED),
    "num_train_epochs": POSITIVE,
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), POSITIVE),
    **dict.fromkeys(("eval_delay", "dataloader_num_workers", "router_aux_loss_coef"), NOT_NEGATIVE),
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "save_total_limit"),
            *("gradient_accumulation_steps", "generation_batch_size", "steps_per_generation"),
            *("num_iterations", "num_generations_eval", "max_completion_length"),
            *("eval_accumulation_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"),
            *("ddp_timeout", "num_completions_to_print", "torch_empty_cache_steps"),
            *("vllm_tensor_parallel_size", "vllm_max_model_length", "pad_to_multiple_of"),
        ),
        COUNT,
    ),
    "num_generations": Range(2, hint=": the rows of a group are compared"),
    "temperature": Range(0, low_open=True, hint=", or nothing is explored"),
    "top_p": Range(0, 1, low_open=True),
    "top_k": Range(0, hint=" (0 takes all tokens)"),
    "min_p": SHARE,
    "repetition_penalty": POSITIVE,
    **dict.fromkeys(("beta", "epsilon", "epsilon_high"), NOT_NEGATIVE),
    **dict.fromkeys(("delta", "neftune_noise_alpha"), POSITIVE),
    "gradient_shares_every": NOT_NEGATIVE,
    "sampler_correction": NOT_NEGATIVE,
    "vllm_gpu_memory_utilization": Range(0, 1, low_open=True),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), PORT),
    "vllm_server_timeout": NOT_NEGATIVE,
    **dict.fromkeys(
        ("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"), NOT_NEGATIVE
    ),
}


def check_numbers(values: Mapping[str, Any]) -> None:
    """Look at the numbers among some settings; what is no number is left to others.

    Raises:
        UserError: one is out of its range; the message says the range.
    """
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if key == "max_steps" and value != -1 and value < 1:
            raise UserError(
                f"max_steps must be at least 1, or -1 for num_train_epochs, got {value}"
            )
        if key in RANGES and not RANGES[key].holds(value):
            raise UserError(f"{key} must be {RANGES[key]}, got {value}")
