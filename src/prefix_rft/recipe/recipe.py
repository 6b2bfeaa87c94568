"""A recipe: what to train, on what, how. YAML with flat keys; an unknown key is an error.

The keys below are ours; every other key is one of TRL's (``learning_rate``, ``temperature``, ...)
and goes to the trainer's configuration unchanged.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from prefix_rft.data import Reading
from prefix_rft.data.puzzles import refuse_overlap
from prefix_rft.recipe.along import ACTS, COUNTS, check_along
from prefix_rft.recipe.derived import DERIVED
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.recipe.model_options import find_model, model_options
from prefix_rft.recipe.stages import DEFAULT_METHOD, STAGES, stage_names, stages_of
from prefix_rft.runs.best import CHOOSES
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

INIT = "model_init_kwargs"


class EngineRow(NamedTuple):
    """A row of the table of engines.

    Attributes:
        module: the import path of the module that has what ``engines.setup.Engine`` says.
        has_settings: whether a recipe may give the engine's own settings, under the engine's name.
    """

    module: str
    has_settings: bool


ENGINES = {
    "trl": EngineRow("prefix_rft.engines.trl.from_recipe", False),  # on this machine
    "verl": EngineRow("prefix_rft.engines.verl.from_recipe", True),  # on a Ray cluster
}
"""The table of engines, by name."""
DEFAULT_ENGINE = "trl"
RECOMPUTE = ("activation_checkpointing", "gradient_checkpointing")
"""What trades time for the memory of activations: its name since transformers 5.23, and before."""


def recompute_key(keys: Container[str]) -> str:
    """The name among ``keys``, the newer one where both are: that which TRL would not deprecate."""
    return next(key for key in RECOMPUTE if key in keys)


COMPARE, CONTINUAL = "compare", "continual"
BLOCKS = (COMPARE, CONTINUAL)
"""Keys of the settings of several runs, which training does not read."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says. Paths are relative to the recipe's folder.

    A file may also have ``stages``, mappings of keys that differ from stage to stage: each is then
    a recipe of its own, and starts from the model that the one before has left.

    Attributes:
        model: a folder with a Hugging Face model, or a Hub name.
        train_data: a jsonl, json or parquet file, a folder of them, the name of a dataset, or a
            mapping with ``path``, ``name``, ``split``, ``revision``; or ``reasoning_gym`` with the
            name of one of its tasks, ``size``, ``seed`` and the task's options.
        eval_data: held-out rows for the evaluation before and after training, likewise.
        columns: names in the data for ``prompt``, ``demonstration``, ``answer``, ...
        system_prompt: first message of conversations that have none of their own.
        max_demonstrations: use the first N demonstrations of a row; all by default.
        demonstration_fraction: share of rows that keep their demonstrations.
        only_correct_demonstrations: drop those that the first reward does not find correct.
        reward: a built-in name, ``package.module:function`` with TRL's reward signature, a mapping
            with ``name`` and options, or a list of these.
        method: a method's name, or a mapping with ``name`` and options.
        peft: options of an adapter (PEFT) that is put on the model and trained in its place: LoRA,
            or the kind that ``peft_type`` names.
        rif: options of rollout-based instance filtering before training; ``{}`` is its defaults.
        reward_learning: options of a reward that is learnt from demonstrations and trained on in
            place of ``reward``, stage by stage; see ``recipe.reward_options``.
        name: the run folder's name.
        runs: the folder in which run folders go (relative to the working directory).
        prompts_per_step: prompts in one optimizer step, over all processes.
        micro_batch_size: rows in one forward on one process; by default at most 32.
        eval_samples: samples per held-out problem.
        eval_temperature: the temperature of those samples.
        eval_problems: evaluate on the first N held-out rows; all by default.
        eval_every: evaluate on them every N optimizer steps, too; never by default.
        eval_every_samples: samples per held-out problem then; 1 by default.
        keep: ``best`` keeps the weights of the best of these evaluations beside the last ones.
        stop_after: end the run after N of these evaluations in a row that are not the best.
        best_metric: the metric that says which is the best, one of ``runs.best.CHOOSES``; the
            first of them by default.
        engine: a name in ``ENGINES``.
        engine_settings: the engines' own settings, by engine and key; a file has those of an
            engine under its name.
        trainer: TRL's own keys.
        folder: the recipe's folder.
        turn: which stage of reward learning it is, from 0.
    """

    model: str
    train_data: str | Mapping[str, Any]
    eval_data: str | Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_demonstrations: int | None = None
    demonstration_fraction: float = 1.0
    only_correct_demonstrations: bool = False
    reward: str | Mapping[str, Any] | Sequence[Any] | None = None
    method: str | Mapping[str, Any] = DEFAULT_METHOD
    peft: Mapping[str, Any] | None = None
    rif: Mapping[str, Any] | None = None
    reward_learning: Mapping[str, Any] | None = None
    name: str = "run"
    runs: str = "runs"
    prompts_per_step: int = 16
    micro_batch_size: int | None = None
    eval_samples: int = 4
    eval_temperature: float = 1.0
    eval_problems: int | None = None
    eval_every: int | None = None
    eval_every_samples: int | None = None
    keep: str | None = None
    stop_after: int | None = None
    best_metric: str | None = None
    engine: str = DEFAULT_ENGINE
    engine_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    turn: int = 0

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

    @property
    def chooses(self) -> str | None:
        """The metric that says which evaluation is the best; None where nothing acts on that."""
        acts = any(getattr(self, key) is not None for key in ACTS)
        return self.best_metric or CHOOSES[0] if acts else None

    def model_source(self) -> str:
        """The model's folder where it exists beside the recipe, else the name as it stands.

        Raises:
            UserError: it can only be a folder, and there is none.
        """
        return find_model(self.model, self.folder)


@dataclass(frozen=True)
class RecipeFile:
    """A recipe's file as it was read, once for all that a command does with it.

    Attributes:
        path: the file's path.
        overrides: ``key=value`` strings, which are in ``data`` already.
        data: its mapping.
    """

    path: Path
    overrides: tuple[str, ...]
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> RecipeFile:
        """Read the file.

        Raises:
            UserError: see :func:`read_recipe`.
        """
        return cls(Path(path), tuple(overrides), read_recipe(path, overrides))

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return str(self.data.get("engine", DEFAULT_ENGINE))

    @property
    def stages(self) -> list[str]:
        """The name of each stage's run.

        Raises:
            UserError: see :func:`stages_of`.
        """
        return stage_names(self.data)

    def recipe(self, stage: int = 0, **settings: Any) -> Recipe:
        """The recipe, or one stage of it.

        Args:
            stage: index of the stage.
            settings: keys in place of the recipe's own, such as the model of a later stage.

        Raises:
            UserError: a missing key, or a value of wrong type.
        """
        own_keys, number, turn = stages_of(self.data)[stage]
        for override in self.overrides:
            key = override.removeprefix("~").partition("=")[0].partition(".")[0]
            if key in own_keys:
                raise UserError(
                    f"'{override}' has no effect: stage {number} sets '{key}'; give "
                    f"stages.{number}.{override}"
                )
        shared = {k: v for k, v in self.data.items() if k not in (STAGES, *BLOCKS)}
        data = {**shared, **own_keys, "name": self.stages[stage], **settings}
        for key, instead in DERIVED.items():
            if key in data:
                raise UserError(f"recipe key '{key}' cannot be set: {instead}")
        mine = {k: v for k, v in data.items() if k in OWN}
        engine_settings = {engine: data.get(engine, {}) for engine in with_settings()}
        rest = {k: v for k, v in data.items() if k not in (*OWN, *engine_settings)}
        if INIT in rest:
            rest[INIT] = model_options(rest[INIT])
        for key in ("model", "train_data"):
            if key not in mine:
                raise UserError(f"recipe '{self.path}' needs the key '{key}' (a path)")
        check_types("recipe key", mine, {f.name: str(f.type) for f in fields(Recipe)})
        check_types(
            "recipe key", engine_settings, dict.fromkeys(engine_settings, "Mapping[str, Any]")
        )
        check_values(mine, engine_settings)
        return Recipe(
            **mine,
            engine_settings=engine_settings,
            trainer=rest,
            folder=self.path.parent,
            turn=turn,
        )


OWN = tuple(
    f.name for f in fields(Recipe) if f.name not in ("engine_settings", "trainer", "folder", "turn")
)
"""Keys that are a recipe's own; the others are an engine's or the trainer's."""


def with_settings() -> list[str]:
    """The engines whose own settings a recipe may give, each under the engine's name."""
    return [engine for engine, row in ENGINES.items() if row.has_settings]


def refuse_unknown_keys(recipe: Recipe, trainer_keys: Iterable[str]) -> None:
    """Raise UserError for a key that is neither a recipe's own nor one of the trainer's."""
    refuse_unknown("recipe key", recipe.trainer, [*OWN, *with_settings(), STAGES, *trainer_keys])


def check_values(
    values: Mapping[str, Any], engine_settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Look whether the values of a recipe's own keys are in their ranges.

    Args:
        values: the recipe's own keys, as far as it gives them.
        engine_settings: the engines' own settings, by engine.

    Raises:
        UserError: one is not, held-out puzzles are among those to train on, or there are settings
            of another engine than the recipe's.
    """
    name = values.get("name", "run")
    if "/" in name or name in ("", ".", ".."):
        raise UserError(f"recipe key 'name' is the name of a folder, not a path: {name!r}")
    refuse_overlap(values.get("train_data"), values.get("eval_data"))
    engine = values.get("engine", DEFAULT_ENGINE)
    choose("engine", engine, ENGINES)
    for other, settings in engine_settings.items():
        if settings and other != engine:
            raise UserError(f"recipe key '{other}' has no effect without engine: {other}")
    if values.get("eval_temperature", 1.0) < 0:
        raise UserError("recipe key 'eval_temperature' must be at least 0")
    for key in ("prompts_per_step", "micro_batch_size", "eval_samples", "eval_problems", *COUNTS):
        value = values.get(key, 1)
        if value is not None and value < 1:
            raise UserError(f"recipe key '{key}' must be at least 1, got {value}")
    check_along(values)
