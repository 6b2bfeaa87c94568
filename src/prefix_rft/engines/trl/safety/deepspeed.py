"""Versions of DeepSpeed that lose gradients."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from packaging.version import Version

from prefix_rft.support.errors import UserError

FIRST_LOSSY, FIRST_MENDED = Version("0.15.2"), Version("0.19.0")


def refuse_lost_gradients(plugin: Any, accumulation: int) -> None:
    """Refuse what makes DeepSpeed keep the gradient of a step's first micro-batch alone.

    That is ZeRO stage 1 or 2 with the optimizer on the CPU and several micro-batches a step, from
    0.15.2 (its pull request 6550) to 0.18.9; 0.19.0 adds them up again (7967 and 7981). Published
    SFT baselines were trained with it (arXiv 2604.23747).

    Args:
        plugin: accelerate's DeepSpeedPlugin.
        accumulation: micro-batches a step.

    Raises:
        UserError: the run would be one of these.
    """
    zero = plugin.deepspeed_config.get("zero_optimization", {})
    offloaded = (zero.get("offload_optimizer") or {}).get("device", "none")
    if offloaded in ("none", None) and zero.get("cpu_offload"):  # its name in older files
        offloaded = "cpu"
    if zero.get("stage") not in (1, 2) or offloaded in ("none", None) or accumulation == 1:
        return
    installed = Version(version("deepspeed"))
    if FIRST_LOSSY <= installed < FIRST_MENDED:
        raise UserError(
            f"DeepSpeed {installed} drops the gradients of all but the first of a step's "
            f"{accumulation} micro-batches with ZeRO stage {zero['stage']} and the optimizer on "
            f"the CPU (its pull request 7967): install deepspeed>={FIRST_MENDED}, or leave the "
            "optimizer on the GPU, or take one micro-batch a step"
        )
