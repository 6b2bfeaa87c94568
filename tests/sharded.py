"""FSDP2 where there is no accelerator: accelerate shards on these alone."""

import os
from typing import Any

from accelerate import DistributedType, PartialState


def shard_on_a_cpu() -> None:
    """Have accelerate, which shards on accelerators alone, do it here: over gloo."""
    begin: Any = PartialState.__init__

    def begin_here(self: PartialState, cpu: bool = False, **kwargs: Any) -> None:
        begin(self, False, **kwargs)

    def gloo(*args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    setattr(PartialState, "__init__", begin_here)  # noqa: B010
    setattr(PartialState, "_prepare_backend", gloo)  # noqa: B010
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def launched() -> dict[str, str]:
    """What ``accelerate launch --use_fsdp --fsdp_version 2`` says in the environment."""
    return {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
