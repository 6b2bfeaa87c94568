"""From a recipe to a method, rewards and the trainer's configuration; no model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console

from prefix_rft.core import Method
from prefix_rft.engines.arguments import check_trackers, keys, trainer_arguments
from prefix_rft.engines.options import SHARED, resolve
from prefix_rft.engines.packages import check_packages
from prefix_rft.engines.teachers import with_paths
from prefix_rft.recipe.along import refuse_unreached
from prefix_rft.recipe.batches import BatchPlan
from prefix_rft.recipe.recipe import ENGINES, Recipe, RecipeFile, refuse_unknown_keys
from prefix_rft.recipe.rif_options import Filter
from prefix_rft.rewards import BUILT_IN, close_all, load_rewards
from prefix_rft.support.errors import UserError


class Engine(Protocol):
    """What the module of an engine has; ``recipe.recipe.ENGINES`` is the table of them."""

    RUNS_ITSELF: bool
    """The engine reads rows, trains, saves and evaluates by itself, in ``run``."""
    DROPS_UNREADABLE: bool
    """Rows whose gold answer no grader can read are dropped before training."""

    def refuse(self, recipe: Recipe, method: Method) -> None:
        """Raise UserError for what a recipe says and the engine cannot do."""
        ...

    def verify_settings(self, recipe: Recipe, args: Any) -> str | None:
        """Look whether the engine takes its settings; a sentence on it, where there is one."""
        ...

    def prompts_per_generation(self, plan: BatchPlan, args: Any) -> int:
        """Prompts that are sampled from together; rows that do not fill one are left out."""
        ...

    def steps_of_epoch(self, plan: BatchPlan, args: Any, method: Method, rows: int) -> int:
        """Optimizer steps of one pass over so many rows."""
        ...

    def iterations(self, args: Any) -> int:
        """How often the prompts of a step are counted for one generation of rollouts."""
        ...

    def refuse_changes(
        self, folder: Path, changed: dict[str, list[str | None]], recipe: dict[str, Any]
    ) -> None:
        """Raise UserError for a changed setting that would not act when a run goes on."""
        ...

    def run(self, recipe: Recipe, args: Any, folder: Path, console: Console, resume: bool) -> None:
        """Train to the end, where ``RUNS_ITSELF``."""
        ...


def engine_of(name: str) -> Engine:
    """The module of an engine, which is imported now."""
    return cast(Engine, import_module(ENGINES[name].module))


@dataclass(frozen=True)
class Setup:
    """Everything that a recipe decides.

    Attributes:
        recipe: the recipe as it stands, with overrides.
        method: the one that is estimated, written, and trained, with all its options.
        rewards: functions with TRL's signature; ``verdicts`` are those of the last call.
        args: the trainer's configuration.
        plan: how the rows of a step are split.
        engine: what runs it.
    """

    recipe: Recipe
    method: Method
    rewards: list[Any]
    args: Any
    plan: BatchPlan
    engine: Engine

    @property
    def prompts_per_generation(self) -> int:
        """Prompts that are sampled from together; rows that do not fill one are left out."""
        return self.engine.prompts_per_generation(self.plan, self.args)

    def steps_of_epoch(self, rows: int) -> int:
        """Optimizer steps of one pass, as the trainers count them; see :meth:`total_steps`."""
        return self.engine.steps_of_epoch(self.plan, self.args, self.method, rows)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the run.

        Args:
            rows: the number of rows that are trained on: demonstrations for a method that does not
                sample.
        """
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self.steps_of_epoch(rows))

    def close(self) -> None:
        """End the rewards' processes."""
        close_all(self.rewards)


def configure(path: str | Path, overrides: Sequence[str] = ()) -> Setup:
    """Read a recipe and resolve it; of several stages the first one.

    Raises:
        UserError: anything in it that cannot be used.
    """
    return set_up(RecipeFile.read(path, overrides))


def set_up(file: RecipeFile, stage: int = 0, folder: Path | None = None, **settings: Any) -> Setup:
    """Resolve a stage of a recipe.

    Args:
        file: the recipe as it was read.
        stage: index of the stage.
        folder: the run's folder, in place of a new one.
        settings: keys in place of the recipe's own, such as the model of a later stage.

    Raises:
        UserError: anything in it that cannot be used.
    """
    recipe = file.recipe(stage, **settings)
    method = resolve(
        recipe.method_name,
        recipe.method_options,
        {k: recipe.trainer[k] for k in SHARED if k in recipe.trainer},
        "as a key of the recipe",
        "under method",
        recipe.folder,
    )
    method = with_paths(method, recipe.folder)
    refuse_unknown_keys(recipe, keys(method))
    engine = engine_of(recipe.engine)
    engine.refuse(recipe, method)
    if recipe.rif is not None:
        Filter.read(recipe.rif)
        if not recipe.reward:
            raise UserError("rif needs a reward, which says what is solved")
    rewards, weights = reward_functions(recipe, method)
    args, plan = trainer_arguments(recipe, method, folder)
    check_trackers(args.report_to)
    check_packages(args, recipe.model_options)
    if args.max_steps > 0:
        refuse_unreached(recipe.eval_every, args.max_steps)
    if method.samples and recipe.reward_learning is not None:
        refuse_weights(args.reward_weights, weights)
    elif method.samples and args.reward_weights is None:
        args.reward_weights = weights or None
    return Setup(recipe, args.resolve_method(), rewards, args, plan, engine)


def reward_functions(recipe: Recipe, method: Method) -> tuple[list[Any], list[float]]:
    """The recipe's reward functions and their weights.

    Raises:
        UserError: one cannot be used, or a method that samples has none.
    """
    learns = recipe.reward_learning is not None
    if learns and not method.samples:
        raise UserError(
            f"method '{method.name}' imitates and has no use for a reward: reward_learning needs "
            "a method that samples, such as dr_grpo"
        )
    rewards, weights = load_rewards(recipe.reward, recipe.folder)
    if method.samples and method.reads_rewards and not rewards and not learns:
        raise UserError(
            f"method '{method.name}' needs a reward: add reward: {', '.join(BUILT_IN)}, or "
            "package.module:function"
        )
    if any(w != 1.0 for w in weights) and "reward_weights" in recipe.trainer:
        raise UserError("give weights with the rewards or as reward_weights, not both")
    return rewards, weights


def refuse_weights(given: Any, weights: Sequence[float]) -> None:
    """Refuse weights of rewards where one that is learnt stands in their place.

    Raises:
        UserError: there are some.
    """
    if given is not None or any(w != 1.0 for w in weights):
        raise UserError(
            "with reward_learning the policy is trained on the learnt reward alone, and 'reward' "
            "grades held-out rows: leave out its weights"
        )
