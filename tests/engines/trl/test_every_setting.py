"""Every setting of TRL's acts, is refused, or says nothing: none is accepted and ignored."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from prefix_rft import PrefixRFTConfig
from prefix_rft.engines.options import SHARED
from prefix_rft.engines.trl import DemonstrationConfig
from prefix_rft.engines.trl.ranges import RANGES
from prefix_rft.engines.trl.settings import HARMFUL, RL, SFT, SWITCHES
from prefix_rft.recipe.derived import DERIVED
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.support.errors import UserError
from tiny import NO_RECOMPUTE, make_config

# What the loop, the optimizer, the devices, the log and the checkpoints of transformers read.


def words(text: str) -> set[str]:
    return set(text.split())


ACTS = words(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1
    adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps max_grad_norm bf16
    fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend
    torch_compile_mode use_liger_kernel torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps
    save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
    hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed use_cpu accelerator_config
    parallelism_config dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    dataloader_in_order ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
    do_eval model_init_kwargs trust_remote_code router_aux_loss_coef
    """
)
RL_ACTS = ACTS | words(
    """
    disable_dropout cast_lm_head_to_fp32 num_generations num_generations_eval max_completion_length
    shuffle_dataset generation_batch_size steps_per_generation temperature top_p top_k min_p
    generation_kwargs chat_template_kwargs repetition_penalty cache_implementation use_vllm
    num_iterations reward_weights log_completions log_completions_hub_repo
    use_transformers_continuous_batching use_transformers_paged
    """
)
SFT_ACTS = ACTS | words(
    """
    neftune_noise_alpha include_num_input_tokens_seen data_seed train_sampling_strategy
    length_column_name dataloader_drop_last remove_unused_columns label_names prediction_loss_only
    include_for_metrics batch_eval_metrics eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps pad_to_multiple_of activation_offloading
    """
)
NEWER = words("activation_checkpointing activation_checkpointing_kwargs")
"""Names that transformers has from 5.23 on."""
# Said of what is not there, or done anyway, or read by scripts and not by trainers.
HARMLESS = {"do_train", "do_predict", "resume_from_checkpoint", "local_rank", "logging_dir"}
RL_HARMLESS = HARMLESS | {"log_multimodal", "ds3_gather_for_generation", "dataloader_drop_last"}
SFT_HARMLESS = HARMLESS | {"pad_token"}


def classes(base: type) -> dict[str, set[str]]:
    names = {f.name for f in fields(base)}
    switched = {n for n in names if n.startswith("vllm_")} | SWITCHES.keys()
    if base is SFTConfig:
        acts, refused, harmless = SFT_ACTS, set(SFT), SFT_HARMLESS
        switched &= names
        shared: set[str] = set()
    else:
        acts, refused, harmless = RL_ACTS, {*RL, *HARMFUL}, RL_HARMLESS
        shared = set(SHARED)
    acts = acts - (NEWER - names)
    return {
        "acts": acts,
        "refused": refused,
        "harmless": harmless - {"logging_dir"},
        "acts where another is on, else refused": switched,
        "reaches the method, or is refused": shared,
    }


@pytest.mark.parametrize("base", [GRPOConfig, SFTConfig])
def test_every_setting_of_trl_is_in_exactly_one_class(base: type) -> None:
    names, found = {f.name for f in fields(base)}, classes(base)
    for name in names:
        where = [kind for kind, members in found.items() if name in members]
        assert len(where) == 1, (
            f"{name} of {base.__name__} is in {where or 'no class: say what it does'}"
        )
    assert set().union(*found.values()) - names == set()
    assert {f.name for f in fields(TrainingArguments)} <= names


def test_a_number_with_a_range_is_a_setting() -> None:
    known = {f.name for c in (PrefixRFTConfig, DemonstrationConfig) for f in fields(c)}
    assert RANGES.keys() <= known


OTHER: dict[str, Any] = {
    "label_names": ["x"],
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "loss_type": "dft",
    "scale_rewards": "batch",
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "train_sampling_strategy": "sequential",
    "length_column_name": "n",
    "chat_template_path": "x.jinja",
    "eos_token": "<x>",
    "dataset_text_field": "t",
    "dataset_num_proc": 2,
    "dataset_kwargs": {"add_special_tokens": False},
    "truncation_mode": "keep_end",
    "packing_strategy": "wrapped",
    "pad_to_multiple_of": 8,
    "data_seed": 1,
    "liger_kernel_config": {"rope": True},
    "transformers_continuous_batching_config": {"max_memory_percent": 0.1},
    "vllm_mode": "server",
    "vllm_server_base_url": "http://x",
    "vllm_structured_outputs_regex": "a+",
    "vllm_model_impl": "transformers",
    "vllm_server_host": "x",
    "vllm_importance_sampling_mode": "token_mask",
}


def another(base: type, name: str) -> Any:
    """A value of a setting that is not its default."""
    default = next(f.default for f in fields(base) if f.name == name)
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    return default + 0.5 if isinstance(default, float) else (default or 0) + 1


def make(base: type, folder: Path, **more: Any) -> Any:
    if base is GRPOConfig:
        return make_config(folder, **more)
    return DemonstrationConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, **NO_RECOMPUTE, **more
    )


CASES = [
    *((GRPOConfig, name, words) for name, words in {**RL, **HARMFUL}.items()),
    *((SFTConfig, name, words) for name, words in SFT.items()),
    *((GRPOConfig, name, f"without {switch}: true") for name, switch in SWITCHES.items()),
    *(
        (GRPOConfig, f.name, "no effect without use_vllm: true")
        for f in fields(GRPOConfig)
        if f.name.startswith("vllm_")
    ),
]


@pytest.mark.parametrize(("base", "name", "words"), CASES)
def test_what_would_be_ignored_is_refused(
    base: type, name: str, words: str, tmp_path: Path
) -> None:
    value = another(base, name)
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (the words are looked at below)
        make(base, tmp_path, **{name: value})
    assert f"{name}={value!r} " in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize("base", [GRPOConfig, SFTConfig])
def test_a_configuration_can_be_made_of_another(base: type, tmp_path: Path) -> None:
    first = make(base, tmp_path, bf16=False)
    given = {f.name: getattr(first, f.name) for f in fields(first) if f.init}
    if base is GRPOConfig:
        given["generation_batch_size"] = None
    assert type(first)(**given).to_dict() == first.to_dict()


@pytest.mark.parametrize("key", sorted(DERIVED))
def test_what_a_recipe_decides_itself_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: x\ntrain_data: y\n{key}: {json.dumps(True)}\n")
    with pytest.raises(UserError, match=f"recipe key '{key}' cannot be set: "):
        RecipeFile.read(path).recipe()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stop_strings": ["###"]}, "cannot have 'stop_strings': TRL gives transformers no"),
        ({"max_new_tokens": 5}, "cannot have 'max_new_tokens': give max_completion_length"),
        ({"num_return_sequences": 2}, "give num_generations"),
        ({"temperature": 0.5}, "it is a key of its own"),
        ({"typical_q": 0.5}, "unknown key of generation_kwargs 'typical_q': did you mean"),
    ],
)
def test_settings_of_sampling_that_have_no_place_there(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        make_config(tmp_path, generation_kwargs=given)
    assert words in str(refused.value)
    assert make_config(tmp_path, generation_kwargs={"typical_p": 0.9}).generation_kwargs


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("top_k", (-1, -5), "top_k must be at least 0 (0 takes all tokens), got"),
        ("top_p", (0, 1.5, -0.1), "top_p must be in (0, 1], got"),
        ("min_p", (-0.1, 1.1), "min_p must be in [0, 1], got"),
        ("temperature", (0, -1, float("inf")), "temperature must be above 0, or nothing is"),
        ("repetition_penalty", (0, -1), "repetition_penalty must be above 0"),
        ("num_generations", (0, 1, -2), "num_generations must be at least 2: the rows of"),
        ("max_completion_length", (0, -1), "max_completion_length must be at least 1"),
        ("num_iterations", (0, -1), "num_iterations must be at least 1"),
        ("gradient_shares_every", (-1,), "gradient_shares_every must be at least 0"),
        ("beta", (-0.1,), "beta must be at least 0"),
        ("delta", (0, -1), "delta must be above 0"),
        ("max_steps", (0, -2), "max_steps must be at least 1, or -1 for num_train_epochs"),
        ("num_train_epochs", (0, -1.0), "num_train_epochs must be above 0"),
        ("learning_rate", (-1e-6, float("nan")), "learning_rate must be at least 0"),
        ("weight_decay", (-0.1,), "weight_decay must be at least 0"),
        ("adam_beta2", (1, -0.1), "adam_beta2 must be in [0, 1), got"),
        ("max_grad_norm", (-1,), "max_grad_norm must be at least 0"),
        ("warmup_steps", (-1,), "warmup_steps must be at least 0"),
        ("logging_steps", (0, -5), "logging_steps must be above 0"),
        ("save_steps", (0, -5), "save_steps must be above 0"),
        ("save_total_limit", (0, -1), "save_total_limit must be at least 1"),
        ("seed", (-1, 2**32), "seed must be in [0, 4294967295]"),
        ("gradient_accumulation_steps", (0,), "gradient_accumulation_steps must be at least 1"),
        ("vllm_gpu_memory_utilization", (0, 1.5), "utilization must be in (0, 1], got"),
    ],
)
def test_numbers_out_of_range(
    key: str, values: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    kinds = [GRPOConfig, SFTConfig] if key in {f.name for f in fields(SFTConfig)} else [GRPOConfig]
    for base in kinds:
        for value in values:
            with pytest.raises(UserError) as refused:
                make(base, tmp_path, **{key: value})
            assert words in str(refused.value)
            assert str(refused.value).endswith(f"got {value}")


def test_a_cache_of_transformers_is_used_where_one_is_named(tmp_path: Path) -> None:
    assert make_config(tmp_path, cache_implementation="static").cache_implementation == "static"
    with pytest.raises(UserError, match="unknown cache_implementation 'statik': did you mean"):
        make_config(tmp_path, cache_implementation="statik")
