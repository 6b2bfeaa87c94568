"""Start verl's trainer from a configuration that has our block."""

from __future__ import annotations

from typing import Any

import ray
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from prefix_rft.engines.verl.block import configure


class MethodRunner(TaskRunnerV1.__ray_metadata__.modified_class):  # pyright: ignore[reportAttributeAccessIssue]
    """verl's runner, in whose process our trainers are known."""

    def run(self, config: Any) -> None:
        """Run verl's training loop."""
        from prefix_rft.engines.verl import plugin  # noqa: F401

        super().run(config)


def launch(config: Any) -> None:
    """Check the configuration, then run.

    Raises:
        UserError: a setting that cannot be used.
    """
    auto_set_device(config)
    configure(config)
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    run_ppo(config, task_runner_class=ray.remote(MethodRunner))
