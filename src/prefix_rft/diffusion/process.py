"""Noise on examples and samples out of noise, with the schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from prefix_rft.diffusion.library import library
from prefix_rft.diffusion.loss import Noised, Predict
from prefix_rft.support.errors import UserError, choose

PREDICTED = ("epsilon", "v_prediction")
"""What a model of a scheduler with betas may predict."""
FLOW = "FlowMatchEulerDiscreteScheduler"


class Process(Protocol):
    """How noise is put on examples and taken off again.

    Attributes:
        levels: how many times there are.
    """

    levels: int

    def noised(self, x: Tensor, noise: Tensor, level_B: Tensor, condition: Any) -> Noised:
        """Examples ``x`` with ``noise``, both (B, ...), each at one of the levels."""
        ...

    def sample(self, predict: Predict, noise: Tensor, condition: Any, steps: int) -> Tensor:
        """Samples (B, ...) that a model makes of noise, without gradient and without chance."""
        ...


class Diffusion:
    """Noise with betas: ``x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps``, sampled by DDIM.

    The target is eps, or ``v = sqrt(abar_t) eps - sqrt(1 - abar_t) x`` where the scheduler says
    v_prediction. Sources: DDPM (arXiv 2006.11239, eq. 4), DDIM with eta 0 (arXiv 2010.02502,
    eq. 12), v (arXiv 2202.00512, section 4).

    Args:
        config: the scheduler's config, of any scheduler of diffusers that has betas.

    Raises:
        UserError: the model predicts something else.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        diffusers = library()
        choose("prediction_type of the scheduler", config.get("prediction_type"), PREDICTED)
        self.scheduler = diffusers.DDPMScheduler.from_config(config)
        self.sampler = diffusers.DDIMScheduler.from_config(config)
        self.levels = int(self.scheduler.config.num_train_timesteps)

    def noised(self, x: Tensor, noise: Tensor, level_B: Tensor, condition: Any) -> Noised:
        """Examples with noise at the times ``level_B``."""
        noisy, target = self.scheduler.add_noise(x, noise, level_B), noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(x, noise, level_B)
        return Noised(noisy, level_B, condition, target)

    def sample(self, predict: Predict, noise: Tensor, condition: Any, steps: int) -> Tensor:
        """Samples by DDIM in so many steps, which draws nothing beyond ``noise``."""
        return _sampled(self.sampler, predict, noise, condition, steps)


class Flow:
    """A straight path, ``x_t = (1 - sigma) x + sigma eps``, whose flow is ``eps - x``.

    Levels are the scheduler's table of sigmas, its shift included, and are drawn uniformly; Stable
    Diffusion 3 draws them otherwise. Source: rectified flow (arXiv 2209.03003, eq. 1), in the
    direction of arXiv 2403.03206.

    Args:
        config: the config of a ``FlowMatchEulerDiscreteScheduler``.

    Raises:
        UserError: the scheduler shifts by the size of a picture, or samples with chance.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        for key in ("use_dynamic_shifting", "stochastic_sampling"):
            if config.get(key):
                raise UserError(
                    f"scheduler_config.json has {key}: true, which is not supported here: set it "
                    "to false, with the shift that you train at"
                )
        diffusers = library()
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        self.sigmas, self.times = scheduler.sigmas, scheduler.timesteps
        self.levels = len(self.times)
        self.sampler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)

    def noised(self, x: Tensor, noise: Tensor, level_B: Tensor, condition: Any) -> Noised:
        """Examples with noise at the entries ``level_B`` of the table, of which 0 is pure noise."""
        row = level_B.to(self.sigmas.device)
        sigma = self.sigmas[row].to(x).view(-1, *[1] * (x.dim() - 1))
        times_B = self.times[row].to(x)
        return Noised((1 - sigma) * x + sigma * noise, times_B, condition, noise - x)

    def sample(self, predict: Predict, noise: Tensor, condition: Any, steps: int) -> Tensor:
        """Samples by Euler's method in so many steps."""
        return _sampled(self.sampler, predict, noise, condition, steps)


@torch.no_grad()
def _sampled(sampler: Any, predict: Predict, noise: Tensor, condition: Any, steps: int) -> Tensor:
    sampler.set_timesteps(steps, device=noise.device)
    x = noise
    for t in sampler.timesteps:
        told_B = t.to(noise.device).expand(len(noise))
        x = sampler.step(predict(x, told_B, condition), t, x, return_dict=False)[0]
    return x


def process_of(config: Mapping[str, Any], path: object) -> Process:
    """The process that a scheduler's config describes.

    Args:
        config: the contents of ``scheduler_config.json``.
        path: where it was read, for messages.

    Raises:
        UserError: a scheduler of another kind.
    """
    name = config.get("_class_name")
    if name == FLOW:
        return Flow(config)
    if "beta_schedule" not in config:
        raise UserError(
            f"'{path}' is of {name!r}, which has no betas: give a scheduler that has, such as "
            f"DDPMScheduler, or {FLOW}"
        )
    return Diffusion(config)
