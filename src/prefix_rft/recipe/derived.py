"""Keys of TRL's that a recipe may not set: it decides them itself, or they would do nothing."""

from __future__ import annotations

BATCH = "give prompts_per_step and micro_batch_size"
DERIVED = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": BATCH,
    "generation_batch_size": BATCH,
    "output_dir": "give name and runs",
    "method_options": "give them under method",
    "do_eval": "held-out rows are evaluated where there is eval_data",
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        "give eval_every, a number of steps; held-out rows are evaluated before and after in any "
        "case",
    ),
    "load_best_model_at_end": "give keep: best, and the best model is beside the last one",
    "metric_for_best_model": "give best_metric",
    "greater_is_better": "what best_metric names is better the higher it is",
    "num_generations_eval": "give eval_samples and eval_every_samples",
    "trust_remote_code": "code that comes with a model is never run",
    "hub_token": "a recipe is written to the run folder; use the environment for secrets",
    "auto_find_batch_size": "give micro_batch_size",
    "demonstration_column": "give columns, a mapping with demonstration",
    "parallelism_config": "give it to accelerate launch",
    "enable_jit_checkpoint": "a signal saves a checkpoint as it is",
    **dict.fromkeys(("do_train", "do_predict"), "prefix-rft train trains, prefix-rft eval samples"),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "push the folder runs/NAME/model yourself",
    ),
    **dict.fromkeys(
        (
            *("per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval"),
            *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
            "prediction_loss_only",
            *("include_for_metrics", "batch_eval_metrics", "label_names", "eval_packing"),
        ),
        "held-out rows are sampled and graded, always in the same way; give eval_data",
    ),
}
"""TRL keys that a recipe may not set, and what to do instead."""
