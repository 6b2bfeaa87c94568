"""Start verl's trainer from a configuration that has our block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from ray.exceptions import RayTaskError
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.engines.verl.settings import configure
from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.graded import close_all
from prefix_rft.support.errors import RunError, UserError


class MethodRunner(TaskRunnerV1.__ray_metadata__.modified_class):  # pyright: ignore[reportAttributeAccessIssue]
    """verl's runner, in whose process our trainers are known."""

    def run(self, config: Any) -> None:
        """Run verl's training loop."""
        from prefix_rft.engines.verl import plugin  # noqa: F401

        super().run(config)


def launch(config: Any) -> None:
    """Check the configuration, then run.

    Raises:
        UserError: a setting, or rows, that cannot be used.
        RunError: the run had to stop.
    """
    auto_set_device(config)
    verify(config)
    try:
        run_ppo(config, task_runner_class=ray.remote(MethodRunner))
    except RayTaskError as error:
        cause: Any = error
        while isinstance(cause, RayTaskError):  # from a process of a process
            cause = cause.cause
        if isinstance(cause, (UserError, RunError)):
            raise cause from None
        raise


def verify(config: Any) -> None:
    """Have our engine and verl look at the configuration, which is then set up for the method.

    Raises:
        UserError: a setting that cannot be used.
    """
    configure(config)
    try:
        validate_config(
            config=config,
            use_reference_policy=need_reference_policy(config),
            use_critic=need_critic(config),
        )
    except InstantiationException as error:  # Hydra's, around what a setting's class has raised
        raise UserError(f"verl does not take its settings: {error.__cause__ or error}") from error
    except (AssertionError, ImportError, ValueError) as error:
        raise UserError(f"verl does not take its settings: {error}") from error


def check_rewards(config: Any) -> None:
    """Load the block's rewards once: verl takes one that cannot be loaded for prompts that failed.

    Recipes have loaded them before.

    Raises:
        UserError: a reward that cannot be used.
    """
    settings: Any = OmegaConf.to_container(config[KEY], resolve=True)
    block = MethodConfig.read(settings)
    if block.reward is not None:
        close_all(load_rewards(block.reward, Path(block.folder))[0])


def composed(settings: Mapping[str, Any]) -> Any:
    """verl's configuration with our block and these settings.

    Args:
        settings: the settings by key, with dots; one that begins with ``+`` is new to verl's
            configuration.

    Raises:
        UserError: verl's configuration has no such key.
    """
    chosen = [f"model_engine={settings['model_engine']}"] if "model_engine" in settings else []
    with initialize_config_module("prefix_rft.engines.verl.config", version_base=None):
        config = compose("prefix_rft", overrides=chosen)
    OmegaConf.set_struct(config, True)
    for key, value in settings.items():
        try:
            if key.startswith("+"):
                with open_dict(config):
                    OmegaConf.update(config, key[1:], value, force_add=True)
            else:
                OmegaConf.update(config, key, value, merge=False)
        except (OmegaConfBaseException, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"verl's configuration does not take '{key}': {why}") from error
    return config
