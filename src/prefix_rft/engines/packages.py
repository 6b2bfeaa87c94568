"""Packages that a setting needs: one that is missing is named before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers import Trainer

from prefix_rft.engines.models import one_line
from prefix_rft.support.errors import UserError

SWITCHES = {
    "use_vllm": ("vllm", "pip install 'prefix-rft[vllm]'"),
    "use_liger_kernel": ("liger_kernel", "pip install liger-kernel"),
}
"""Settings that need a package when they are on: its module, and how to have it."""

ATTENTION = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "build it from github.com/Dao-AILab"),
    "/": ("kernels", "pip install kernels"),
}
"""What a part of ``attn_implementation`` needs; a slash is in names of kernels on the Hub."""


def check_packages(args: Any, init: Mapping[str, Any]) -> None:
    """Look whether what a configuration asks for is installed.

    Args:
        args: the trainer's configuration.
        init: the recipe's ``model_init_kwargs``.

    Raises:
        UserError: a package is missing; the message says which setting needs it.
    """
    for key, (module, fix) in SWITCHES.items():
        if getattr(args, key, False) and find_spec(module) is None:
            raise UserError(f"{key}: true needs the package '{module}': {fix}, or leave it out")
    attention = str(init.get("attn_implementation", ""))
    for part, (module, fix) in ATTENTION.items():
        if part in attention and find_spec(module) is None:
            raise UserError(
                f"attn_implementation '{attention}' needs the package '{module}': {fix}, or leave "
                "it out"
            )
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, RuntimeError) as error:
        name = getattr(args.optim, "value", args.optim)
        raise UserError(f"optim '{name}' cannot be used: {one_line(error)}") from error
    except (ValueError, AttributeError):  # it asks for more than is known here, such as the model
        return
