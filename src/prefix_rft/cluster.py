"""``engine: verl``: a recipe as settings of verl's, and its run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.core import Method
from prefix_rft.engines.verl.block import KEY, unsupported
from prefix_rft.errors import UserError, nearest
from prefix_rft.recipe import Recipe
from prefix_rft.run_folder import append_metrics

ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{x}" for x in ("actor", "rollout", "model"))

KEYS = {
    "num_generations": [f"{ROLLOUT}.n"],
    "max_completion_length": ["data.max_response_length"],
    "temperature": [f"{ROLLOUT}.temperature"],
    "top_p": [f"{ROLLOUT}.top_p"],
    "num_iterations": [f"{ACTOR}.ppo_epochs"],
    "learning_rate": [f"{ACTOR}.optim.lr"],
    "weight_decay": [f"{ACTOR}.optim.weight_decay"],
    "max_grad_norm": [f"{ACTOR}.optim.clip_grad"],
    "seed": ["data.seed", f"{ACTOR}.data_loader_seed", f"{ROLLOUT}.seed", f"{KEY}.seed"],
    "epsilon_high": [f"{KEY}.epsilon_high"],
    "delta": [f"{KEY}.delta"],
}
"""TRL's keys, and verl's with the same meaning."""

SPECIAL = (
    *("epsilon", "beta", "entropy_coef", "top_k", "max_steps", "num_train_epochs", "save_steps"),
    *("save_strategy", "save_total_limit", "lr_scheduler_type", "warmup_steps", "report_to"),
    *("activation_checkpointing", "gradient_checkpointing"),
    *("logging_steps", "adam_beta1", "adam_beta2", "chat_template_kwargs", "bf16"),
)
"""TRL's keys that are taken over in another form, or need not be."""

SCHEDULES = ("constant", "cosine")


def refuse(recipe: Recipe, method: Method) -> None:
    """Refuse what a recipe says and this engine cannot do.

    Raises:
        UserError: a key that has no counterpart on verl, or a method that does not run there.
    """
    if why := unsupported(method):
        raise UserError(f"method '{method.name}' does not run on verl: {why}; use engine: trl")
    for name in ("rif", "only_correct_demonstrations"):
        if getattr(recipe, name) not in (None, False):
            raise UserError(
                f"recipe key '{name}' is not there with engine: verl: prepare the rows beforehand"
            )
    for key in recipe.trainer:
        if key not in KEYS and key not in SPECIAL:
            raise UserError(
                f"recipe key '{key}' has no counterpart on verl ({nearest(key, [*KEYS, *SPECIAL])})"
                ": leave it out, or set verl's own key under 'verl:'"
            )
    if isinstance(recipe.train_data, Mapping) or isinstance(recipe.eval_data, Mapping):
        raise UserError("with engine: verl, train_data and eval_data are a file, folder or name")
    schedule = str(recipe.trainer.get("lr_scheduler_type", "constant"))
    if schedule not in SCHEDULES:
        raise UserError(f"verl has the schedules {', '.join(SCHEDULES)}, not '{schedule}'")


def settings(recipe: Recipe, args: Any, folder: Path, resume: bool) -> dict[str, Any]:
    """The recipe as settings of verl's, with dots in their keys.

    Args:
        recipe: as it stands.
        args: TRL's configuration of it, which has the defaults.
        folder: of the run.
        resume: go on from the newest checkpoint in it.
    """
    found: dict[str, Any] = {}
    for key, theirs in KEYS.items():
        value = getattr(args, key)
        found |= dict.fromkeys(theirs, value)
    options = {
        **recipe.method_options,
        **{
            k: recipe.trainer[k] for k in ("epsilon", "beta", "entropy_coef") if k in recipe.trainer
        },
    }
    here = os.path.abspath(recipe.folder)
    found |= {
        f"{KEY}.method": recipe.method_name,
        f"{KEY}.method_options": options or None,
        f"{KEY}.reward": recipe.reward,
        f"{KEY}.columns": dict(recipe.columns),
        f"{KEY}.system_prompt": recipe.system_prompt,
        f"{KEY}.max_demonstrations": recipe.max_demonstrations,
        f"{KEY}.demonstration_fraction": recipe.demonstration_fraction,
        f"{KEY}.folder": here,
        f"{MODEL}.enable_gradient_checkpointing": bool(
            getattr(args, "activation_checkpointing", args.gradient_checkpointing)
        ),
        f"{MODEL}.path": absolute(recipe.model_source()),
        "data.train_files": recipe.train_data,
        "data.val_files": recipe.eval_data or recipe.train_data,
        "data.val_max_samples": recipe.eval_problems or -1,
        "data.train_batch_size": recipe.prompts_per_step,
        "data.apply_chat_template_kwargs": dict(args.chat_template_kwargs or {}),
        f"{ACTOR}.ppo_mini_batch_size": recipe.prompts_per_step,
        f"{ACTOR}.optim.betas": [args.adam_beta1, args.adam_beta2],
        f"{ACTOR}.optim.lr_scheduler_type": str(
            getattr(args.lr_scheduler_type, "value", "constant")
        ),
        f"{ACTOR}.optim.lr_warmup_steps": int(args.warmup_steps or 0),
        f"{ROLLOUT}.top_k": args.top_k or -1,  # TRL's 0 is all
        f"{ROLLOUT}.val_kwargs.n": recipe.eval_samples,
        f"{ROLLOUT}.val_kwargs.temperature": recipe.eval_temperature,
        f"{ROLLOUT}.val_kwargs.do_sample": recipe.eval_temperature > 0,
        # verl ends at whichever comes first.
        "trainer.total_epochs": 10**6 if args.max_steps > 0 else int(args.num_train_epochs),
        "trainer.total_training_steps": args.max_steps if args.max_steps > 0 else None,
        "trainer.save_freq": save_freq(args),
        "trainer.max_actor_ckpt_to_keep": args.save_total_limit,
        "trainer.default_local_dir": str(folder.resolve() / "checkpoints"),
        "trainer.resume_mode": "auto" if resume else "disable",
        "trainer.project_name": "prefix-rft",
        "trainer.experiment_name": folder.name,
        "trainer.logger": ["console", "file", *args.report_to],
        "trainer.val_before_train": recipe.eval_data is not None,
        "trainer.test_freq": -1 if recipe.eval_data is None else 10**9,  # at the end
        # A resumed run begins a file of its own.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(
            folder.resolve() / f"verl-{len(list(folder.glob('verl-*.jsonl'))) + 1:03d}.jsonl"
        ),
    }
    if recipe.micro_batch_size is None:
        found[f"{ACTOR}.use_dynamic_bsz"] = True  # as many rows as verl's token budget holds
    else:
        found[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] = recipe.micro_batch_size
        found[f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"] = recipe.micro_batch_size
    return found | dotted(recipe.verl)


def save_freq(args: Any) -> int:
    """Every how many steps a checkpoint is written; -1 is never."""
    if str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
        return -1
    if args.save_steps >= 1:
        return int(args.save_steps)
    if args.max_steps <= 0:
        raise UserError(
            "with engine: verl, a save_steps below 1 is a share of max_steps: give max_steps, or "
            "save_steps as a number of steps"
        )
    return max(1, round(args.save_steps * args.max_steps))


def absolute(model: str) -> str:
    """A folder's whole path, for processes elsewhere; a Hub name as it stands."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def dotted(given: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in its keys."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            found |= dotted(value, f"{above}{key}.")
        else:
            found[above + str(key)] = value
    return found


RENAMED = {
    "actor/loss": "loss",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "critic/score/mean": "reward",
}
"""Metrics of verl's, and what the TRL engine calls them."""


def take_metrics(folder: Path) -> None:
    """Write ``metrics.jsonl`` as other runs have it, from verl's own file."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("verl*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            lines.setdefault(int(line["step"]), {}).update(line["data"])
    for step in sorted(lines):
        named = {RENAMED.get(k, k): v for k, v in lines[step].items()}
        append_metrics(folder, step, named)


def run(recipe: Recipe, args: Any, folder: Path, console: Console, resume: bool) -> None:
    """Run on verl, to the end.

    Raises:
        UserError: verl is not installed, or a setting that cannot be used.
    """
    from prefix_rft.engines.verl import require_verl

    require_verl()
    from prefix_rft.engines.verl.launch import composed, launch

    config = composed(settings(recipe, args, folder, resume))
    console.print(f"verl's own output follows; the run folder is {folder}", highlight=False)
    try:
        launch(config)
    finally:
        take_metrics(folder)
