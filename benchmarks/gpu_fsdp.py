"""Three steps of Prefix-RFT with sharded weights (FSDP2), as ``gpu.py`` has accelerate launch it.

    accelerate launch --num_processes 1 --use_fsdp --fsdp_version 2 benchmarks/gpu_fsdp.py \
        --device cuda --output FILE
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from accelerate import DistributedType, PartialState

from prefix_rft import PrefixRFTTrainer
from prefix_rft.support.writing import write_json
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

STEPS = 3


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


def main() -> None:
    """Train, and write loss and gradient norm of each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.device == "cpu":
        shard_on_a_cpu()
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"use_cpu": args.device == "cpu", "bf16": args.device != "cpu"}
        trainer = PrefixRFTTrainer(
            make_model(tokenizer, layers=2),
            shaped_reward,
            make_config(folder, max_steps=STEPS, **settings),
            train_dataset=make_rows(),
            processing_class=tokenizer,
        )
        trainer.train()
    sharded = {type(p).__name__ for p in trainer.model.parameters()}
    steps = [line for line in trainer.state.log_history if "loss" in line]
    result = {
        "sharded": trainer.is_fsdp_enabled and sharded == {"DTensor"},
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "steps": [{k: line[k] for k in ("loss", "grad_norm", "reward")} for line in steps],
    }
    if trainer.accelerator.is_main_process:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
