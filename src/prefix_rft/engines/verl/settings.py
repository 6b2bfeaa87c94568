"""What of verl's settings a method replaces, and what this engine sets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from prefix_rft.core import Method
from prefix_rft.core.teacher import KEPT
from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.support.errors import UserError, choose

MODEL = "prefix_rft_model"
"""Key of ``data`` with the model's path, whose generation config says what ends a completion."""

AGENT_LOOP = "prefix_rft"
DATASET = ("pkg://prefix_rft.engines.verl.dataset", "Prompts")
REWARDS = ("pkg://prefix_rft.engines.verl.rewards", "Graders")

MODES = {
    "prefix_rft": "sync",
    "prefix_rft_colocate_async": "colocate_async",
    "prefix_rft_separate_async": "separate_async",
}
"""Values of ``trainer.v1.trainer_mode``, and the mode of verl's behind each."""

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


SHARED_ROWS = (
    "ulysses_sequence_parallel_size",
    "fsdp_config.ulysses_sequence_parallel_size",
    "megatron.tensor_model_parallel_size",
    "megatron.pipeline_model_parallel_size",
    "megatron.context_parallel_size",
)
"""Settings with which several processes hold the same rows, and one of them what comes out."""


def configure(config: DictConfig) -> tuple[MethodConfig, Method]:
    """Read the block, refuse what contradicts it, and set what the engine needs of verl.

    May be called again on a configuration that it has changed.

    Raises:
        UserError: see :class:`MethodConfig`; or a setting of verl's that the method replaces.
    """
    settings: Any = OmegaConf.to_container(config.get(KEY) or OmegaConf.create(), resolve=True)
    block = MethodConfig.read(settings)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    choose("trainer.v1.trainer_mode", config.trainer.v1.trainer_mode, MODES)
    for key, (value, instead) in {**OWNED, **NEEDED}.items():
        set_to = OmegaConf.select(config, key)
        ours = key == "data.custom_cls.path" and set_to == DATASET[0]
        if set_to != value and not ours:
            raise UserError(f"{key}={set_to} cannot be used here, leave it at {value}: {instead}")
    if config.critic.enable:
        raise UserError("critic.enable=True cannot be used here: no method has a critic")
    generations, budget = int(rollout.n), int(config.data.max_response_length)
    method = block.resolve_method(generations, budget)
    if method.needs_unit_temperature and rollout.temperature != 1.0:
        raise UserError(
            f"method '{block.method}' reads likelihoods of demonstrations, which are those of "
            f"temperature 1, got actor_rollout_ref.rollout.temperature={rollout.temperature}"
        )
    chosen = method.selection
    current = chosen is not None and chosen.source == "current" and chosen.scope != "step"
    batch = config.data.train_batch_size
    if current and (batch > actor.ppo_mini_batch_size or actor.ppo_epochs > 1):
        for key in SHARED_ROWS:
            if (OmegaConf.select(config, f"actor_rollout_ref.actor.{key}") or 1) > 1:
                raise UserError(
                    f"with {key} above 1 there are no entropies of a second update: give the "
                    "method entropy_source: rollout, or make one update a step"
                )
    check_teachers(config, method)
    apart = OmegaConf.select(config, "reward.reward_model.enable_resource_pool")
    if OmegaConf.select(config, "reward.reward_model.enable") and not apart:
        raise UserError(
            "a reward model on the rollouts' own devices grades them too late for their groups: "
            "set reward.reward_model.enable_resource_pool=True"
        )
    if block.weight_check is not None and not rollout.calculate_log_probs:
        raise UserError(
            f"{KEY}.weight_check compares the sampler's log-probs with the actor's: set "
            f"actor_rollout_ref.rollout.calculate_log_probs=True, or {KEY}.weight_check=null"
        )
    with open_dict(config):
        config.data.custom_cls = {"path": DATASET[0], "name": DATASET[1]}
        config.data[KEY] = settings
        config.data[MODEL] = config.actor_rollout_ref.model.path
        config.critic.enable = False  # verl warns where it is open
        actor.calculate_entropy = True  # methods select and weight tokens by it
        actor.use_kl_loss = method.needs_reference  # makes verl run the reference policy
        rollout.agent.default_agent_loop = AGENT_LOOP
        rollout.agent.agent_loop_config_path = str(Path(__file__).with_name("agent_loop.yaml"))
        rollout.custom = {**(rollout.get("custom") or {}), KEY: settings}
        if block.reward is not None:
            config.reward.reward_manager.source = "importlib"
            config.reward.reward_manager.name = REWARDS[1]
            config.reward.reward_manager.module.path = REWARDS[0]
    return block, method


def check_teachers(config: DictConfig, method: Method) -> None:
    """Look whether verl can give the method's teachers their weights.

    Raises:
        UserError: it cannot.
    """
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    for teacher in method.teachers:
        whose = f"teacher '{teacher.name}' has weights: {teacher.weights}"
        if teacher.weights in KEPT and actor.strategy != "fsdp2":
            raise UserError(
                f"{whose}, which are kept as FSDP2 shards them: set "
                f"actor_rollout_ref.actor.strategy=fsdp2, got {actor.strategy}"
            )
        lora = model.lora_rank > 0 or model.lora_adapter_path is not None
        if teacher.weights == "adapter_off" and not lora:
            raise UserError(f"{whose}, but the model has no adapter: use frozen")
        for key in SHARED_ROWS if teacher.moves else ():
            if (OmegaConf.select(config, f"actor_rollout_ref.actor.{key}") or 1) > 1:
                raise UserError(
                    f"{whose}, so it scores the rows of each update, which cannot be done with "
                    f"{key} above 1: use frozen, or model"
                )
