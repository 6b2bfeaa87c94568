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

from prefix_rft import PrefixRFTTrainer
from prefix_rft.support.writing import write_json
from sharded import shard_on_a_cpu
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

STEPS = 3
TEACHER = {
    "weights": "ema",
    "context": "demonstration",
    "template": "like {context}: {prompt}",
    "rate": 0.25,
}
KEYS = ("loss", "grad_norm", "reward", "teacher/gap_abs")


def trained(device: str, folder: str, **method: Any) -> Any:
    """A trainer of a small model that has trained, with sharded weights."""
    tokenizer = make_tokenizer()
    settings = {"use_cpu": device == "cpu", "bf16": device != "cpu"}
    trainer = PrefixRFTTrainer(
        make_model(tokenizer, layers=2),
        shaped_reward,
        make_config(folder, max_steps=STEPS, **settings, **method),
        train_dataset=make_rows(),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def steps_of(trainer: Any) -> list[dict[str, float]]:
    """What each step has logged."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{k: line[k] for k in KEYS if k in line} for line in lines]


def main() -> None:
    """Train, and write loss and gradient norm of each step, also with a teacher whose weights are
    kept beside the sharded ones.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.device == "cpu":
        shard_on_a_cpu()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(args.device, folder)
        options = {"method": "opd", "method_options": {"teacher": TEACHER}}
        taught = trained(args.device, folder, **options)
    sharded = {type(p).__name__ for p in trainer.model.parameters()}
    result = {
        "sharded": trainer.is_fsdp_enabled and sharded == {"DTensor"},
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "steps": steps_of(trainer),
        "taught": steps_of(taught),
    }
    if trainer.accelerator.is_main_process:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
