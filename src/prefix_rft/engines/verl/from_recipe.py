"""``engine: verl``: a recipe as settings of verl's, and its run."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.core import Method
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.changes import (
    AT_ONCE,
    LENGTH,
    OPTIMIZER,
    SCHEDULE,
    WITH_ROLLOUTS,
    among,
)
from prefix_rft.engines.options import SHARED
from prefix_rft.engines.verl.method_config import KEY, unsupported
from prefix_rft.engines.verl.results import NEWEST, take_metrics, to_merge
from prefix_rft.recipe.along import ACTS
from prefix_rft.recipe.batches import BatchPlan
from prefix_rft.recipe.recipe import RECOMPUTE, Recipe
from prefix_rft.runs.rollouts import cut_rollouts
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError, nearest

RUNS_ITSELF = True
DROPS_UNREADABLE = False

ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{x}" for x in ("actor", "rollout", "model"))

KEYS = {
    "num_generations": [f"{ROLLOUT}.n"],
    "max_completion_length": ["data.max_response_length"],
    "temperature": [f"{ROLLOUT}.temperature"],
    "top_p": [f"{ROLLOUT}.top_p"],
    "num_iterations": [f"{ACTOR}.ppo_epochs"],
    "learning_rate": [f"{ACTOR}.optim.lr"],
    "weight_decay": [f"{ACTOR}.optim.weight_decay"],
    "seed": ["data.seed", f"{ACTOR}.data_loader_seed", f"{ROLLOUT}.seed", f"{KEY}.seed"],
}
"""TRL's keys, and verl's with the same meaning."""

SPECIAL = (
    *SHARED,
    *("top_k", "max_steps", "num_train_epochs", "save_steps"),
    *("save_strategy", "save_total_limit", "lr_scheduler_type", "warmup_steps", "report_to"),
    *RECOMPUTE,
    *("log_rollouts", "adam_beta1", "adam_beta2", "chat_template_kwargs", "chat_template_date"),
    "max_grad_norm",
)
"""TRL's keys that are taken over in another form, or need not be."""

NO_LIMIT = 1e9
"""For the norm of the gradient; 0, TRL's word for it, would take the gradient away on verl."""

LAST = 10**9
"""Steps from one evaluation to the next, of which there is one after the last step in any case."""

SCHEDULES = ("constant", "cosine")


def refuse(recipe: Recipe, method: Method) -> None:
    """Refuse what a recipe says and this engine cannot do.

    Raises:
        UserError: a key that has no counterpart on verl, or a method that does not run there.
    """
    if why := unsupported(method):
        raise UserError(f"method '{method.name}' does not run on verl: {why}; use engine: trl")
    source = recipe.model_source()
    if Path(source).is_dir() and find_adapter(source) is not None:
        raise UserError(
            f"model '{recipe.model}' is an adapter, which verl does not load: merge it into its "
            "base, or use engine: trl"
        )
    if recipe.peft is not None:
        raise UserError(
            "recipe key 'peft' is not there with engine: verl, where adapters were never tried: "
            "leave it out, or use engine: trl"
        )
    for name in ("rif", "only_correct_demonstrations"):
        if getattr(recipe, name) not in (None, False):
            raise UserError(
                f"recipe key '{name}' is not there with engine: verl: prepare the rows beforehand"
            )
    if recipe.reward_learning is not None:
        raise UserError(
            "recipe key 'reward_learning' is not there with engine: verl, whose rewards are "
            "functions without a model: use engine: trl"
        )
    if recipe.eval_every_samples is not None:
        raise UserError(
            "recipe key 'eval_every_samples' is not there with engine: verl, which takes "
            "eval_samples at every evaluation: leave it out"
        )
    for name in ACTS:
        if getattr(recipe, name) is not None:
            raise UserError(
                f"recipe key '{name}' is not there with engine: verl, which acts on no evaluation: "
                "leave it out, or use engine: trl"
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
        recipe: the recipe as it stands.
        args: TRL's configuration of it, which has the defaults.
        folder: the run's folder.
        resume: go on from the newest checkpoint in it.
    """
    verl_settings: dict[str, Any] = {}
    for key, theirs in KEYS.items():
        value = getattr(args, key)
        verl_settings |= dict.fromkeys(theirs, value)
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    here = os.path.abspath(recipe.folder)
    steps = args.max_steps if args.max_steps > 0 else None
    warmup = args.warmup_steps or 0
    if 0 < warmup < 1 and steps is None:
        raise UserError("with engine: verl, warmup_steps is a number of steps, or give max_steps")
    if steps is None and args.num_train_epochs != int(args.num_train_epochs):
        raise UserError("with engine: verl, num_train_epochs is a whole number, or give max_steps")
    if steps is not None and 0 < warmup < 1:
        warmup = math.ceil(warmup * steps)
    recompute = [recipe.trainer[k] for k in RECOMPUTE if k in recipe.trainer]
    verl_settings |= {
        f"{KEY}.method": recipe.method_name,
        f"{KEY}.method_options": args.method_options or None,
        f"{KEY}.reward": recipe.reward or [],  # none where the method reads none
        f"{KEY}.columns": dict(recipe.columns),
        f"{KEY}.system_prompt": recipe.system_prompt,
        f"{KEY}.max_demonstrations": recipe.max_demonstrations,
        f"{KEY}.demonstration_fraction": recipe.demonstration_fraction,
        f"{KEY}.folder": here,
        f"{KEY}.chat_template_date": args.chat_template_date,
        # Not TRL's own default, which asks for the machine that starts the run.
        f"{MODEL}.enable_gradient_checkpointing": bool(recompute[0]) if recompute else True,
        f"{MODEL}.path": absolute(recipe.model_source()),
        "data.train_files": recipe.train_data,
        "data.val_files": recipe.eval_data or recipe.train_data,
        "data.val_max_samples": recipe.eval_problems or -1,
        "data.train_batch_size": recipe.prompts_per_step,
        "data.apply_chat_template_kwargs": dict(args.chat_template_kwargs or {}),
        f"{ACTOR}.ppo_mini_batch_size": recipe.prompts_per_step,
        f"{ACTOR}.optim.betas": [args.adam_beta1, args.adam_beta2],
        f"{ACTOR}.optim.lr_scheduler_type": str(schedule),
        f"{ACTOR}.optim.lr_warmup_steps": int(warmup),
        f"{ACTOR}.optim.clip_grad": args.max_grad_norm or NO_LIMIT,
        f"{ROLLOUT}.top_k": args.top_k or -1,  # TRL's 0 is all
        f"{ROLLOUT}.val_kwargs.n": recipe.eval_samples,
        f"{ROLLOUT}.val_kwargs.temperature": recipe.eval_temperature,
        f"{ROLLOUT}.val_kwargs.do_sample": recipe.eval_temperature > 0,
        # verl ends at whichever comes first.
        "trainer.total_epochs": 10**6 if steps else int(args.num_train_epochs),
        "trainer.total_training_steps": steps,
        "trainer.save_freq": save_freq(args),
        "trainer.max_actor_ckpt_to_keep": args.save_total_limit,
        "trainer.default_local_dir": str(folder.resolve() / "checkpoints"),
        "trainer.resume_mode": "auto" if resume else "disable",
        "trainer.project_name": "prefix-rft",
        "trainer.experiment_name": folder.name,
        "trainer.logger": ["console", "file", *args.report_to],
        "trainer.rollout_data_dir": str(folder.resolve() / "rollouts")
        if args.log_rollouts
        else None,
        "trainer.val_before_train": recipe.eval_data is not None,
        "trainer.test_freq": -1 if recipe.eval_data is None else recipe.eval_every or LAST,
        # A resumed run begins a file of its own.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(
            folder.resolve() / f"verl-{len(list(folder.glob('verl-*.jsonl'))) + 1:03d}.jsonl"
        ),
    }
    if recipe.micro_batch_size is None:
        verl_settings[f"{ACTOR}.use_dynamic_bsz"] = True  # as many rows as its token budget holds
    else:
        verl_settings[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] = recipe.micro_batch_size
        for part in (ROLLOUT, "actor_rollout_ref.ref"):
            verl_settings[f"{part}.log_prob_micro_batch_size_per_gpu"] = recipe.micro_batch_size
    return verl_settings | dotted(recipe.engine_settings["verl"])


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


def dotted(mapping: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in its keys.

    Raises:
        UserError: one of verl's settings is given in two ways.
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        nested = isinstance(value, Mapping)
        part = dotted(value, f"{above}{key}.") if nested else {above + str(key): value}
        if twice := next((name for name in part if name in flat), None):
            raise UserError(f"recipe key 'verl' has '{twice}' twice: leave one")
        flat |= part
    return flat


def verify_settings(recipe: Recipe, args: Any) -> str:
    """Look whether verl takes the recipe's settings; what was looked at.

    Raises:
        UserError: it does not.
    """
    values = settings(recipe, args, Path(args.output_dir), resume=False)
    if find_spec("verl") is None:
        return "engine verl: verl is not installed here, so its own settings were not looked at"
    from prefix_rft.engines.verl import require_verl

    require_verl()
    from prefix_rft.engines.verl.launch import composed, verify

    with redirect_stdout(sys.stderr):  # verl prints there
        verify(composed(values))
    return "engine verl: its settings are taken"


def prompts_per_generation(plan: BatchPlan, args: Any) -> int:
    """Prompts that are sampled from together; rows that do not fill one are left out."""
    return plan.prompts


def steps_of_epoch(plan: BatchPlan, args: Any, method: Method, rows: int) -> int:
    """Optimizer steps of one pass: a batch is one step, however often it is used."""
    return rows // plan.prompts


def iterations(args: Any) -> int:
    """How often the prompts of a step are counted for one generation: verl counts them once."""
    return 1


MAY_CHANGE = ("eval_*", "micro_batch_size", "verl.trainer*", "verl.ray_kwargs*")
"""Keys of a recipe that may change while verl trains, beside settings of the trainer."""


def refuse_changes(
    folder: Path, changed: dict[str, list[str | None]], recipe: dict[str, Any]
) -> None:
    """Refuse what verl would not do on going on: it restores the optimizer and its schedule.

    Args:
        folder: the run's folder.
        changed: settings in which the resolved recipe differs from that of the run's beginning,
            each with both values.
        recipe: the resolved recipe with which it is to go on.

    Raises:
        UserError: something else than what acts at once has changed.
    """
    constant = (recipe.get("trainer") or {}).get("lr_scheduler_type") == "constant"
    for key, (was, has) in changed.items():
        group, _, name = key.partition(".")
        acts = among(key, MAY_CHANGE)
        if group == "trainer" and not among(name, (*SCHEDULE, *OPTIMIZER)):
            acts = among(name, LENGTH) and constant
            acts |= among(name, tuple(n for n in (*AT_ONCE, *WITH_ROLLOUTS) if n not in LENGTH))
        if not acts:
            raise UserError(
                f"the run '{folder}' was made with {key} {was}, and this recipe has {has}, which "
                "does not act when verl goes on: resume with what the run began with"
            )


def run(recipe: Recipe, args: Any, folder: Path, console: Console, resume: bool) -> None:
    """Run on verl, to the end.

    Raises:
        UserError: verl is not installed, or a setting that cannot be used.
    """
    from prefix_rft.engines.verl import require_verl

    require_verl()
    from prefix_rft.engines.verl.launch import composed, launch

    config = composed(settings(recipe, args, folder, resume))
    # Where they are: a recipe's ``verl:`` may say otherwise.
    saved, written = (config.trainer[k] for k in ("default_local_dir", "rollout_data_dir"))
    if resume and written and not (Path(saved) / NEWEST).is_file():
        cut_rollouts(Path(written), 0)  # it begins anew
    say(console, f"verl's own output follows; the run folder is {folder}")
    try:
        launch(config)
    finally:
        take_metrics(folder)
    say(console, to_merge(folder, Path(saved), str(config.actor_rollout_ref.actor.strategy)))
