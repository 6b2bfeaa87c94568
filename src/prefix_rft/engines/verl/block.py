"""The ``prefix_rft:`` block of verl's configuration, and what of verl's settings it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from prefix_rft.core import Method
from prefix_rft.data import Reading
from prefix_rft.engines.options import SHARED, check_rows, parse_options, with_const
from prefix_rft.errors import UserError, check_range, check_types, refuse_unknown
from prefix_rft.imports import load_function
from prefix_rft.methods import load, options_of

KEY = "prefix_rft"
MODEL = "prefix_rft_model"
"""Key of ``data`` with the model's path, whose generation config says what ends a completion."""

AGENT_LOOP = "prefix_rft"
DATASET = ("pkg://prefix_rft.engines.verl.dataset", "Prompts")
REWARDS = ("pkg://prefix_rft.engines.verl.rewards", "Graders")

OWNED = {
    "algorithm.adv_estimator": ("grpo", "the method decides the advantages"),
    "algorithm.use_kl_in_reward": (False, "set prefix_rft.beta"),
    "algorithm.filter_groups.enable": (False, "set the method option all_wrong or all_right"),
    "actor_rollout_ref.actor.policy_loss.loss_mode": ("vanilla", "the method decides the loss"),
    "actor_rollout_ref.actor.loss_agg_mode": (
        "token-mean",
        "the method decides; its option is 'aggregation'",
    ),
    "actor_rollout_ref.actor.loss_scale_factor": (None, "set the method option 'const'"),
    "actor_rollout_ref.actor.clip_ratio": (0.2, "set prefix_rft.epsilon"),
    "actor_rollout_ref.actor.clip_ratio_low": (0.2, "set prefix_rft.epsilon"),
    "actor_rollout_ref.actor.clip_ratio_high": (0.2, "set prefix_rft.epsilon_high"),
    "actor_rollout_ref.actor.clip_ratio_c": (3.0, "set prefix_rft.delta"),
    "actor_rollout_ref.actor.entropy_coeff": (0, "set prefix_rft.entropy_coef"),
    "actor_rollout_ref.actor.kl_loss_coef": (0.001, "set prefix_rft.beta"),
    "actor_rollout_ref.actor.kl_loss_type": ("low_var_kl", "the method decides the KL term"),
    "actor_rollout_ref.actor.use_prefix_grouper": (False, "rows of a group have prefixes"),
    "actor_rollout_ref.rollout.multi_turn.enable": (False, "a prefix belongs to a single turn"),
    "data.custom_cls.path": (None, "rows are read as the TRL engine reads them"),
    "distillation.enabled": (False, "the method decides the loss"),
}
"""Settings of verl's that a method replaces: the only value allowed, and what to do instead."""

NEEDED = {
    "algorithm.rollout_correction.bypass_mode": (
        False,
        "log-probs of prefixes come from the actor, so its pass before the update is needed",
    ),
    "algorithm.rollout_correction.rollout_rs": (
        None,
        "rows that verl rejects would stay in the normalisers",
    ),
    "trainer.use_v1": (True, "this is a plug-in for verl's V1 trainers"),
    "trainer.critic_warmup": (0, "there is no critic"),
}


@dataclass(frozen=True)
class Block:
    """Keys, names and defaults of the TRL engine; None is the method's own default.

    Attributes:
        method: built-in method, or ``package.module:function``.
        method_options: of the method; a mapping, or JSON.
        epsilon: lower clip range.
        epsilon_high: upper clip range.
        delta: two-sided clip.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        reward: as in a recipe; None leaves rewards to verl's ``reward.*`` settings.
        columns: names in the data, as in a recipe.
        system_prompt: as in a recipe.
        max_demonstrations: as in a recipe.
        demonstration_fraction: as in a recipe.
        seed: of prefixes, and of which rows keep their demonstrations.
        folder: what relative paths and modules of methods and rewards are relative to.
        weight_check: mean difference between the sampler's log-probs and the actor's, in nats a
            token, above which the run stops; None is never.
    """

    method: str = "prefix_rft"
    method_options: dict[str, Any] | str | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float | None = None
    entropy_coef: float | None = None
    reward: Any = None
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_demonstrations: int | None = None
    demonstration_fraction: float = 1.0
    seed: int = 42
    folder: str = "."
    weight_check: float | None = 0.5

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Block:
        """From the configuration.

        Raises:
            UserError: an unknown key, or a value of the wrong type or out of range.
        """
        known = [f.name for f in fields(cls)]
        refuse_unknown(f"key of '{KEY}:'", given, known)
        check_types(f"key of '{KEY}:'", given, {f.name: str(f.type) for f in fields(cls)})
        block = cls(**given)
        if block.weight_check is not None:
            check_range(f"{KEY}.weight_check", block.weight_check, 0.0)
        return block

    @property
    def reading(self) -> Reading:
        """How rows are read."""
        return Reading(
            self.columns,
            self.system_prompt,
            self.max_demonstrations,
            self.demonstration_fraction,
            self.seed,
        )

    def resolve_method(self, generations: int, max_completion_length: int) -> Method:
        """The method with its options.

        Args:
            generations: rows of a group.
            max_completion_length: in tokens, prefix included.

        Raises:
            UserError: an unknown method or option, one given twice, one that this engine cannot
                run, or groups that are too small.
        """
        options: Any = self.method_options or {}
        if isinstance(options, str):
            options = parse_options(f"{KEY}.method_options", options)
        if ":" in self.method:
            load_function(self.method, Path(self.folder), "method")
        known = options_of(self.method)
        given = dict(options)
        for key in SHARED:
            value = getattr(self, key)
            if value is None:
                continue
            if key not in known:
                raise UserError(f"{KEY}.{key} has no effect: '{self.method}' has no {key}")
            if given.get(key, value) != value:
                raise UserError(
                    f"{key} is {value} in '{KEY}:' and {given[key]} in its method_options"
                )
            given[key] = value
        method = load(self.method, **given)
        if why := unsupported(method):
            raise UserError(f"method '{method.name}' does not run on verl: {why}; use engine: trl")
        try:
            check_rows(method, self.method, generations)
        except ValueError as error:
            raise UserError(str(error)) from error
        return with_const(method, max_completion_length)


def unsupported(method: Method) -> str | None:
    """Why this engine cannot run a method; None where it can."""
    chosen = method.selection
    again = (method.all_wrong, method.all_right)
    if not method.samples:
        return "it never samples"
    if "resample" in again:
        return "another prompt cannot be taken in the place of one that was sampled"
    if method.interleave is not None:
        return "it sets prompts aside for steps of their own"
    if method.contrast is not None:
        return "its contrast compares rows of a whole step in one process"
    if method.sampler != "policy" or method.needs_own_reference:
        return "it needs a reference policy for more than a KL term"
    if chosen is not None and chosen.scope == "step" and chosen.source != "rollout":
        return "entropy_scope: step needs entropy_source: rollout here"
    return None


def configure(config: DictConfig) -> tuple[Block, Method]:
    """Read the block, refuse what contradicts it, and set what the engine needs of verl.

    May be called again on a configuration that it has changed.

    Raises:
        UserError: see :class:`Block`; or a setting of verl's that the method replaces.
    """
    given: Any = OmegaConf.to_container(config.get(KEY) or OmegaConf.create(), resolve=True)
    block = Block.read(given)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    for key, (value, instead) in {**OWNED, **NEEDED}.items():
        set_to = OmegaConf.select(config, key)
        ours = key == "data.custom_cls.path" and set_to == DATASET[0]
        if set_to != value and not ours:
            raise UserError(f"{key}={set_to} cannot be used here, leave it at {value}: {instead}")
    generations, budget = int(rollout.n), int(config.data.max_response_length)
    method = block.resolve_method(generations, budget)
    if method.needs_unit_temperature and rollout.temperature != 1.0:
        raise UserError(
            f"method '{block.method}' reads likelihoods of demonstrations, which are those of "
            f"temperature 1, got actor_rollout_ref.rollout.temperature={rollout.temperature}"
        )
    if block.weight_check is not None and not rollout.calculate_log_probs:
        raise UserError(
            f"{KEY}.weight_check compares the sampler's log-probs with the actor's: set "
            f"actor_rollout_ref.rollout.calculate_log_probs=True, or {KEY}.weight_check=null"
        )
    with open_dict(config):
        config.data.custom_cls = {"path": DATASET[0], "name": DATASET[1]}
        config.data[KEY] = given
        config.data[MODEL] = config.actor_rollout_ref.model.path
        actor.calculate_entropy = True  # methods select and weight tokens by it
        actor.use_kl_loss = method.needs_reference  # makes verl run the reference policy
        rollout.agent.default_agent_loop = AGENT_LOOP
        rollout.agent.agent_loop_config_path = str(Path(__file__).with_name("agent_loop.yaml"))
        rollout.custom = {**(rollout.get("custom") or {}), KEY: given}
        if block.reward is not None:
            config.reward.reward_manager.source = "importlib"
            config.reward.reward_manager.name = REWARDS[1]
            config.reward.reward_manager.module.path = REWARDS[0]
    return block, method
