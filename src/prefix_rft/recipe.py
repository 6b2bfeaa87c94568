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
from prefix_rft.decided import DERIVED
from prefix_rft.errors import UserError, check_types, choose, refuse_unknown
from prefix_rft.models import look_for, model_options
from prefix_rft.strict_yaml import Keys, load

DEFAULT_METHOD = "prefix_rft"
STAGES = "stages"
INIT = "model_init_kwargs"
ENGINES = ("trl", "verl")
RECOMPUTE = ("activation_checkpointing", "gradient_checkpointing")
"""What trades time for the memory of activations: its name since transformers 5.23, and before."""

HAVE_NO = (
    *("save_strategy", "logging_strategy", "eval_strategy", "report_to"),
    "include_num_input_tokens_seen",
)
"""Keys of TRL's with a setting that is called ``no``, which YAML would read as false."""

COMPARE = "compare"
"""Key of a comparison's own settings, which training does not read."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe says. Paths are relative to the recipe's folder.

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
        stages: mappings of keys that differ from stage to stage; each stage starts from the model
            that the one before has left.
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


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a recipe file with ``key=value`` overrides (dots reach into mappings).

    An override ``~key`` takes a key away, so that its default holds.

    Raises:
        UserError: no such file, not YAML, not a mapping, or an override that is not ``key=value``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"recipe '{path}' does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"recipe '{path}' is not valid YAML: it is not UTF-8") from error
    data = load(text, f"recipe '{path}'", has_words)
    if not isinstance(data, dict):
        raise UserError(f"recipe '{path}' must be a mapping of keys to values")
    for override in overrides:
        if override.startswith("~"):
            data.pop(override[1:], None)
            continue
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' is not of the form key=value")
        _assign(data, key.split("."), value_of(override), override)
    return data


def has_words(keys: Keys) -> bool:
    """Whether ``no`` and ``off`` are words that the setting at these keys has."""
    return keys[-1:] != () and (keys[-1] in HAVE_NO or "tripwires" in keys[:-1])


def value_of(override: str) -> Any:
    """The value of ``key=value``.

    Raises:
        UserError: it is not valid YAML, or YAML reads it unlike it looks.
    """
    key, _, text = override.partition("=")
    what = f"the value of '{override}'"
    return load(text, what, has_words, tuple(key.split(".")), line=0)


def _assign(data: Any, keys: list[str], value: Any, override: str) -> None:
    if keys[0] == STAGES and len(keys) > 1 and isinstance(data.get(STAGES), list):
        data, keys = _stage(data[STAGES], keys[1], override), keys[2:]
        if not keys:
            raise UserError(f"'{override}' must name a key of the stage")
    for number, key in enumerate(keys[:-1]):
        whole = ".".join(keys[number:])
        if whole in data:  # verl's keys may be written with their dots
            data[whole] = value
            return
        inner = data.get(key)
        if key == "method" and isinstance(inner, str):
            inner = data[key] = {"name": inner}
        if inner is None:
            inner = data[key] = {}
        if not isinstance(inner, dict):
            raise UserError(f"'{override}': '{key}' is not a mapping")
        data = inner
    data[keys[-1]] = value


def _stage(stages: list[Any], number: str, override: str) -> Any:
    """The stage that ``stages.NUMBER.key=value`` means."""
    if not number.isdigit() or not 1 <= int(number) <= len(stages):
        raise UserError(f"'{override}': stages are numbered from 1 to {len(stages)}")
    return stages[int(number) - 1]


def stages_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe's mapping; one without any key of its own where it names none.

    Raises:
        UserError: they are not a list of mappings, or name a key that they may not.
    """
    stages = data.get(STAGES, [{}])
    if not isinstance(stages, list) or not stages:
        raise UserError("recipe key 'stages' must be a list of mappings, one for each stage")
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, dict):
            raise UserError(f"stage {number} of the recipe must be a mapping, got {stage!r}")
        for key in (STAGES, "model", "runs", "resume_from_checkpoint"):
            if key in stage:
                raise UserError(f"stage {number} of the recipe cannot have a '{key}' of its own")
    return stages


def stage_names(data: Mapping[str, Any]) -> list[str]:
    """The name of each stage's run: the recipe's, with number and method where there are several.

    Raises:
        UserError: see :func:`stages_of`.
    """
    name, stages = data.get("name", "run"), stages_of(data)
    if STAGES not in data:
        return [name]

    def method(stage: Mapping[str, Any]) -> str:
        given = stage.get("method", data.get("method", DEFAULT_METHOD))
        named = given.get("name", DEFAULT_METHOD) if isinstance(given, dict) else given
        return str(named).replace(":", ".").rpartition(".")[2]

    return [f"{name}-{i}-{s.get('name', method(s))}" for i, s in enumerate(stages, 1)]


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


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of an optimizer step are split."""

    prompts: int
    generations: int
    micro_batch_size: int
    processes: int

    @property
    def rows(self) -> int:
        """Rows of one optimizer step over all processes."""
        return self.prompts * self.generations

    @property
    def micro_batches(self) -> int:
        """Forwards of one optimizer step on one process."""
        return self.rows // (self.micro_batch_size * self.processes)

    def __str__(self) -> str:
        batches = "micro-batches" if self.micro_batches > 1 else "micro-batch"
        return (
            f"{self.prompts} prompts x {self.generations} rows = {self.rows} rows a step, in "
            f"{self.micro_batches} {batches} of {self.micro_batch_size} on {self.processes} "
            f"process{'es' if self.processes > 1 else ''}"
        )


def plan_batches(
    prompts: int, generations: int, micro_batch_size: int | None, processes: int = 1
) -> BatchPlan:
    """Split the rows of a step; by default into the largest micro-batches of at most 32 rows.

    Raises:
        UserError: the numbers do not divide.
    """
    rows = prompts * generations
    if rows % processes:
        raise UserError(
            f"{prompts} prompts x {generations} rows = {rows} do not divide over {processes} "
            "processes: change prompts_per_step"
        )
    local = rows // processes
    if micro_batch_size is None:
        micro_batch_size = max(n for n in range(1, min(32, local) + 1) if local % n == 0)
    if local % micro_batch_size:
        raise UserError(
            f"{prompts} prompts x {generations} rows on {processes} process(es) = {local} rows do "
            f"not divide into micro-batches of {micro_batch_size}: change micro_batch_size or "
            "prompts_per_step"
        )
    return BatchPlan(prompts, generations, micro_batch_size, processes)
