"""Which settings may differ when a run goes on from a checkpoint, and what a difference does.

A setting is in one of three lists or may not change: what is not known here is refused. From the
checkpoint on, a step uses what a run begun with the new settings would use in that step; the
optimizer keeps its moments.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from prefix_rft.core import Method
from prefix_rft.support.errors import UserError

SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_*")
OPTIMIZER = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
LENGTH = ("max_steps", "num_train_epochs")

AT_ONCE = (
    *SCHEDULE, *OPTIMIZER, *LENGTH,
    "max_grad_norm", "on_nonfinite", "nonfinite_limit",
    "epsilon", "epsilon_high", "delta", "sampler_correction", "entropy_coef",
    "router_aux_loss_coef",
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start",
)  # fmt: skip
"""They act from the first optimizer step on."""

WITH_ROLLOUTS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs",
    "cache_implementation", "max_completion_length", "fast_generation",
    "reward_weights", "beta", "bf16", "tf32", "method_options", "guard_prefix_leak",
)  # fmt: skip
"""They act from the next rollouts on, so there must be none that wait for updates."""

NOTHING = (
    # where things are written, and what of them
    "output_dir", "run_name", "project", "logging_*", "log_*", "report_to", "disable_tqdm",
    "num_completions_to_print", "gradient_shares_every", "trackio_*", "include_for_metrics",
    "include_num_input_tokens_seen", "skip_memory_metrics", "debug", "tripwires", "tripwire_steps",
    "save_*", "hub_*", "push_to_hub", "resume_from_checkpoint", "enable_jit_checkpoint",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    # evaluation
    "do_train", "do_eval", "do_predict", "per_device_eval_batch_size", "num_generations_eval",
    "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
    "batch_eval_metrics", "prediction_loss_only", "fp16_full_eval", "bf16_full_eval",
    # how it is computed
    "use_cpu", "local_rank", "ddp_*", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataset_num_proc",
    "dataloader_multiprocessing_context", "torch_empty_cache_steps", "torch_compile*",
    "savings", "activation_*", "gradient_checkpointing*", "use_cache", "ds3_gather_for_generation",
    "vllm_server_*", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
)  # fmt: skip
"""They change nothing that is trained, up to rounding."""

REMEMBERS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that are no function of the step."""

KEEPS_SETTINGS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Optimizers whose groups of parameters hold settings alone."""

FOLLOWS = "generation_batch_size"

SECRET = ("model_init_kwargs", "deepspeed", "fsdp_config")
"""Compared by a hash: a checkpoint may be given away."""


@functools.cache
def among(name: str, names: tuple[str, ...]) -> bool:
    """Whether a setting is in a list."""
    return any(fnmatchcase(name, pattern) for pattern in names)


def settings_of(args: Any) -> dict[str, Any]:
    """The settings that decide what is trained, as plain data.

    Args:
        args: the trainer's configuration.
    """
    settings = {k: v for k, v in args.to_dict().items() if not among(k, NOTHING)}
    plain = json.loads(json.dumps(settings, default=str, sort_keys=True))
    return {k: _hash(v) if k in SECRET and v is not None else v for k, v in plain.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_changes(
    folder: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    method: Method,
    waiting: bool,
    deepspeed: bool,
) -> None:
    """Refuse a run that goes on from a checkpoint with a setting that cannot change.

    Args:
        folder: the checkpoint's.
        before: settings that it was made with; only those of both are compared.
        now: those of this run.
        method: the method that this run trains.
        waiting: the checkpoint holds rollouts that wait for updates.
        deepspeed: DeepSpeed has the optimizer and its schedule.

    Raises:
        UserError: there is one; the message says which, and both values.
    """
    # generation_batch_size follows from others, which say more.
    for name in sorted(before.keys() & now.keys(), key=lambda k: (k == FOLLOWS, k)):
        if before[name] == now[name]:
            continue
        was, has = (f"{name} {_short(x[name])}" for x in (before, now))
        why = _why_not(name, before, now, method, waiting, deepspeed)
        if why is not None:
            raise UserError(
                f"checkpoint '{folder}' was made with {was}, and this run has "
                f"{has.removeprefix(name + ' ')}{why}: resume with what the run began with"
            )


def _why_not(
    name: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    method: Method,
    waiting: bool,
    deepspeed: bool,
) -> str | None:
    """Why a setting cannot change, as the end of a clause; None if it can."""
    if among(name, WITH_ROLLOUTS):
        if name == "method_options" and method.remembers:
            return f", but method '{method.name}' remembers what it did under the former"
        return ", but rollouts made with the former wait in it" if waiting else None
    if not among(name, AT_ONCE):
        return ""
    if deepspeed and among(name, (*SCHEDULE, *OPTIMIZER, *LENGTH)):
        return ", but DeepSpeed restores the optimizer and its schedule as they were"
    schedules = {str(x.get("lr_scheduler_type")) for x in (before, now)}
    if among(name, SCHEDULE) and schedules & set(REMEMBERS):
        return ", but a schedule that is no function of the step cannot change"
    if among(name, OPTIMIZER) and str(now.get("optim")) not in KEEPS_SETTINGS:
        return f", but optimizer {now.get('optim')} keeps its state among its settings"
    if among(name, LENGTH) and method.reference.stages > 1:
        return f", but method '{method.name}' has renewed its reference by the former length"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
