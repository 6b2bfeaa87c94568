"""Which of TRL's settings have no effect here: one that is not at its default is refused."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
from transformers.utils import is_torch_xla_available

from prefix_rft.support.errors import UserError, choose, refuse_unknown

ROWS = "rows are rendered by our own code, before TRL sees them"
REWARDS = "an evaluation here has rewards, no metrics of predictions"
TOOLS = "a prefix belongs to a single turn, so there are no tools"
REFERENCE = "a moving reference is in no checkpoint; a method's moves in stages"
NORMALISER = "the normaliser spans the whole step over all processes, whatever the split"
LOSS = "the method decides the loss"
ENTROPY = "use the method option 'entropy_coef'"

BOTH = {
    "average_tokens_across_devices": NORMALISER,
    "label_smoothing_factor": LOSS,
    "use_cache": "training needs no cache, and sampling always has one",
}

RL = {
    **BOTH,
    "loss_type": f"{LOSS}; its normaliser is the method option 'aggregation'",
    "scale_rewards": "the method decides: 'grpo' divides by the std, 'dr_grpo' does not",
    "importance_sampling_level": "the method decides the importance ratio",
    "multi_objective_aggregation": "rewards are summed with reward_weights before the baseline",
    "top_entropy_quantile": "prefix tokens are selected by the method option 'entropy_keep'",
    "use_adaptive_entropy": ENTROPY,
    **dict.fromkeys(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"), ENTROPY
    ),
    "off_policy_mask_threshold": "the method decides which rows are trained",
    "use_bias_correction_kl": "the method decides the KL term",
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), REFERENCE),
    "mask_truncated_completions": "use the method option truncated: mask",
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), LOSS),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), LOSS),
    "max_tool_calling_iterations": TOOLS,
    "pad_to_multiple_of": "micro-batches are trimmed to their longest row",
    "include_num_input_tokens_seen": "the metrics tokens/... count tokens",
    "data_seed": "the order of the rows follows 'seed'",
    **dict.fromkeys(
        ("train_sampling_strategy", "length_column_name"), "groups are drawn by 'shuffle_dataset'"
    ),
    **dict.fromkeys(
        (
            *("label_names", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
            *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        ),
        REWARDS,
    ),
}
"""Of GRPOConfig."""

HARMFUL = {
    "remove_unused_columns": "it takes away the columns of rewards and demonstrations",
    "neftune_noise_alpha": "noise on the embeddings would be in every importance ratio",
}
"""Of GRPOConfig, what would act and must not."""

SFT = {
    **BOTH,
    "loss_type": LOSS,
    "completion_only_loss": "only demonstration tokens are targets",
    "assistant_only_loss": "only demonstration tokens are targets",
    **dict.fromkeys(
        ("max_length", "truncation_mode"),
        "nothing is cut; longer demonstrations are dropped by max_completion_length",
    ),
    **dict.fromkeys(
        ("packing", "padding_free", "eval_packing", "packing_strategy"),
        "rows stay apart, so that the normaliser can count them",
    ),
    "chat_template_path": f"{ROWS}: give the tokenizer the template",
    "eos_token": f"{ROWS}: give the tokenizer its EOS",
    "dataset_text_field": f"{ROWS}, from prompts and demonstrations",
    "dataset_num_proc": ROWS,
    "dataset_kwargs": ROWS,
    "shuffle_dataset": "rows are shuffled anew in every epoch",
}
"""Of SFTConfig."""

SWITCHES = {
    "transformers_continuous_batching_config": "use_transformers_continuous_batching",
    "liger_kernel_config": "use_liger_kernel",
    "num_completions_to_print": "log_completions",
    "log_unique_prompts": "log_completions",
}
"""Settings that act only where another one is on; so do all vllm_..., with use_vllm."""

OURS: dict[str, tuple[Any, ...]] = {
    # What the configurations themselves make of the defaults.
    "dataset_kwargs": ({"skip_prepare_dataset": True},),
    "pad_to_multiple_of": (None,),
}
"""Values that are as good as TRL's default."""


def refuse_without_effect(
    config: Any, base: type, owned: dict[str, str], harmful: dict[str, str] | None = None
) -> None:
    """Raise ValueError for a setting of TRL's that has no effect here and is not at its default.

    Args:
        config: the configuration as it was given, before TRL has derived one setting from another.
        base: TRL's class.
        owned: why, by setting.
        harmful: settings that would act and must not, likewise.
    """
    for field in fields(base):
        key, value = field.name, getattr(config, field.name)
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if value == default or value in OURS.get(key, ()):
            continue
        if key in (harmful or {}):
            raise ValueError(f"{key}={value!r} cannot be used: {(harmful or {})[key]}")
        if key in owned:
            raise ValueError(f"{key}={value!r} has no effect here: {owned[key]}")
        switch = "use_vllm" if key.startswith("vllm_") else SWITCHES.get(key)
        if switch is not None and not getattr(config, switch):
            raise ValueError(f"{key}={value!r} has no effect without {switch}: true")


def on_what_there_is(config: Any) -> None:
    """Have a machine without an accelerator train on its CPU, in any precision.

    It would anyway, but transformers refuses ``bf16``, TRL's default, unless it is told so.

    Args:
        config: the configuration as it was given; ``use_cpu`` may be set.
    """
    if not torch.accelerator.is_available() and not is_torch_xla_available():
        config.use_cpu = True


ELSEWHERE = {
    "stop_strings": "TRL gives transformers no tokenizer to find them with; a row ends with EOS",
    "num_return_sequences": "give num_generations",
    "max_new_tokens": "give max_completion_length",
    "max_length": "give max_completion_length",
    **dict.fromkeys(("do_sample", "num_beams"), "rows are sampled, or nothing is explored"),
    **dict.fromkeys(
        ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation"),
        "it is a key of its own",
    ),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "use_cache"),
        "TRL wants token ids alone",
    ),
}
"""What is no business of ``generation_kwargs``, and why."""


def check_generation(config: Any) -> None:
    """Look at the settings of transformers' own sampling.

    Raises:
        UserError: one that does not exist, or that has its place elsewhere.
    """
    kwargs = config.generation_kwargs or {}
    if not isinstance(kwargs, dict):
        raise UserError(f"generation_kwargs must be a mapping, got {kwargs!r}")
    for key in kwargs:
        if key in ELSEWHERE:
            raise UserError(f"generation_kwargs cannot have '{key}': {ELSEWHERE[key]}")
    if not config.use_vllm:  # whose keys are others
        refuse_unknown("key of generation_kwargs", kwargs, GenerationConfig().to_dict())
    if config.cache_implementation is not None:
        choose("cache_implementation", config.cache_implementation, ALL_CACHE_IMPLEMENTATIONS)
