"""A recipe: what to train, on what, how. YAML with flat keys; an unknown key is an error.

The keys below are ours; every other key is one of TRL's (``learning_rate``, ``temperature``, ...)
and goes to the trainer's configuration unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefix_rft.data import Reading
from prefix_rft.recipe.derived import DERIVED
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.recipe.model_options import look_for, model_options
from prefix_rft.recipe.stages import DEFAULT_METHOD, STAGES, stage_names, stages_of
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

INIT = "model_init_kwargs"
ENGINES = ("trl", "verl")
RECOMPUTE = ("activation_checkpointing", "gradient_checkpointing")
"""What trades time for the memory of activations: its name since transformers 5.23, and before."""

COMPARE = "compare"
"""Key of a comparison's own settings, which training does not read."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says. Paths are relative to the recipe's folder.

    A file may also have ``stages``, mappings of keys that differ from stage to stage: each is then
    a recipe of its own, and starts from the model that the one before has left.

    Attributes:
        model: a folder with a Hugging Face model, or a Hub name.
        train_data: a jsonl, json or parquet file, a folder of them, the name of a dataset, or a
            mapping with ``path``, ``name``, ``split``, ``revision``.
        eval_data: held-out rows for the evaluation at the end, likewise.
        columns: names in the data for ``prompt``, ``demonstration``, ``answer``, ...
        system_prompt: first message of conversations that have none of their own.
        max_demonstrations: use the first N demonstrations of a row; all by default.
        demonstration_fraction: share of rows that keep their demonstrations.
        only_correct_demonstrations: drop those that the first reward does not find correct.
        reward: a built-in name, ``package.module:function`` with TRL's reward signature, a mapping
            with ``name`` and options, or a list of these.
        method: a method's name, or a mapping with ``name`` and options.
        rif: options of rollout-based instance filtering before training; ``{}`` is its defaults.
        name: of the run folder.
        runs: where run folders go (relative to the working directory).
        prompts_per_step: prompts in one optimizer step, over all processes.
        micro_batch_size: rows in one forward on one process; by default at most 32.
        eval_samples: samples per held-out problem.
        eval_temperature: of those samples.
        eval_problems: evaluate on the first N held-out rows; all by default.
        engine: ``trl``, on this machine, or ``verl``, on a Ray cluster.
        verl: settings of verl's own, by key; dots reach into mappings.
        trainer: TRL's own keys.
        folder: the recipe's folder.
    """

    model: str
    train_data: str | Mapping[str, str]
    eval_data: str | Mapping[str, str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_demonstrations: int | None = None
    demonstration_fraction: float = 1.0
    only_correct_demonstrations: bool = False
    reward: str | Mapping[str, Any] | Sequence[Any] | None = None
    method: str | Mapping[str, Any] = DEFAULT_METHOD
    rif: Mapping[str, Any] | None = None
    name: str = "run"
    runs: str = "runs"
    prompts_per_step: int = 16
    micro_batch_size: int | None = None
    eval_samples: int = 4
    eval_temperature: float = 1.0
    eval_problems: int | None = None
    engine: str = "trl"
    verl: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def method_name(self) -> str:
        """The method's name or import path."""
        if isinstance(self.method, str):
            return self.method
        return str(self.method.get("name", DEFAULT_METHOD))

    @property
    def method_options(self) -> dict[str, Any]:
        """The method's options."""
        if isinstance(self.method, str):
            return {}
        return {k: v for k, v in self.method.items() if k != "name"}

    def reading(self, seed: int = 0) -> Reading:
        """How rows are read; ``seed`` decides which of them keep their demonstrations."""
        return Reading(
            self.columns,
            self.system_prompt,
            self.max_demonstrations,
            self.demonstration_fraction,
            seed,
        )

    @property
    def model_options(self) -> dict[str, Any]:
        """The recipe's ``model_init_kwargs``."""
        return dict(self.trainer.get(INIT) or {})

    def model_source(self) -> str:
        """The model's folder where it exists beside the recipe, else the name as it stands.

        Raises:
            UserError: it can only be a folder, and there is none.
        """
        return look_for(self.model, self.folder)


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    trainer_keys: Sequence[str] | None = None,
    stage: int = 0,
    model: str | None = None,
) -> Recipe:
    """The recipe in a file, or one stage of it.

    Args:
        path: YAML file.
        overrides: ``key=value`` strings.
        trainer_keys: keys that the trainer's configuration knows; None accepts any.
        stage: index of the stage.
        model: in place of the recipe's, as a later stage has it.

    Raises:
        UserError: see :func:`read_recipe`; also a missing or unknown key, or a value of wrong type.
    """
    data = read_recipe(path, overrides)
    name = stage_names(data)[stage]
    own_keys = stages_of(data)[stage]
    for override in overrides:
        key = override.removeprefix("~").partition("=")[0].partition(".")[0]
        if key in own_keys:
            raise UserError(
                f"'{override}' has no effect: stage {stage + 1} sets '{key}'; give "
                f"stages.{stage + 1}.{override}"
            )
    shared = {k: v for k, v in data.items() if k not in (STAGES, COMPARE)}
    data = {**shared, **own_keys, "name": name}
    if model is not None:
        data["model"] = model
    own = [f.name for f in fields(Recipe) if f.name not in ("trainer", "folder")]
    for key, instead in DERIVED.items():
        if key in data:
            raise UserError(f"recipe key '{key}' cannot be set: {instead}")
    mine = {k: v for k, v in data.items() if k in own}
    rest = {k: v for k, v in data.items() if k not in own}
    if trainer_keys is not None:
        refuse_unknown("recipe key", rest, [*own, STAGES, *trainer_keys])
    if INIT in rest:
        rest[INIT] = model_options(rest[INIT])
    for key in ("model", "train_data"):
        if key not in mine:
            raise UserError(f"recipe '{path}' needs the key '{key}' (a path)")
    check_types("recipe key", mine, {f.name: str(f.type) for f in fields(Recipe)})
    if "/" in mine.get("name", "") or mine.get("name") in ("", ".", ".."):
        raise UserError(f"recipe key 'name' is the name of a folder, not a path: {mine['name']!r}")
    choose("engine", mine.get("engine", "trl"), ENGINES)
    if mine.get("verl") and mine.get("engine", "trl") != "verl":
        raise UserError("recipe key 'verl' has no effect without engine: verl")
    if mine.get("eval_temperature", 1.0) < 0:
        raise UserError("recipe key 'eval_temperature' must be at least 0")
    for key in ("prompts_per_step", "micro_batch_size", "eval_samples", "eval_problems"):
        value = mine.get(key, 1)
        if value is not None and value < 1:
            raise UserError(f"recipe key '{key}' must be at least 1, got {value}")
    return Recipe(**mine, trainer=rest, folder=Path(path).parent)
