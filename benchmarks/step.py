"""Time of a training step: stock TRL, our GRPO, our Prefix-RFT, as ratios in one run.

The work is the same for all: 16 prompts x 8 rollouts, at most 100 tokens, lengths geometric with a
long tail (a random model ends a row with the same small probability at each token), 3.2 million
parameters, gradient checkpointing off. Trainers take turns, so that drift of the machine hits all.

A random model does not know where a demonstration ends, so its hybrid rows are longer than the
others (prefix plus a full-length continuation). The last ratio is therefore per completion token.

    python benchmarks/step.py [--rounds 5] [--steps 4] [--output benchmarks/step.json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from prefix_rft import PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.runs.folder import describe_machine, git_state, write_json
from tiny import make_model, make_tokenizer

LENGTH = 100
VARIANTS = ("trl", "grpo", "prefix_rft")


def rows() -> Dataset:
    """512 prompts with demonstrations of 20 to 80 characters."""
    rng = random.Random(0)
    letters = "0123456789+-=;"
    return Dataset.from_dict(
        {
            "prompt": [f"q:{rng.randint(0, 999)}+{rng.randint(0, 999)}=?\n" for _ in range(512)],
            "demonstration": [
                "".join(rng.choices(letters, k=rng.randint(20, 80))) for _ in range(512)
            ],
        }
    )


def reward(completions: list[str], **kwargs: Any) -> list[float | None]:
    """Something that varies: the share of digits."""
    return [sum(ch.isdigit() for ch in c) / max(1, len(c)) for c in completions]


class Clock(TrainerCallback):
    """CPU seconds of each step, the first one (warm-up) left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 1:
            self.seconds.append(time.process_time() - self.start)


def run(variant: str, steps: int, seed: int) -> tuple[list[float], float]:
    """Seconds of each step, and the mean length of the completions."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, hidden=256, layers=4)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 8,
            "num_generations": 8,
            "max_completion_length": LENGTH,
            "learning_rate": 1e-7,
            "max_steps": steps + 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "disable_tqdm": True,
            "seed": seed,
        }
        shared: dict[str, Any] = {
            "train_dataset": rows(),
            "processing_class": tokenizer,
            "callbacks": [clock],
        }
        if variant == "trl":
            args = GRPOConfig(loss_type="dr_grpo", scale_rewards="none", **settings)
            trainer: Any = GRPOTrainer(model, reward, args, **shared)
        else:
            method = "dr_grpo" if variant == "grpo" else variant
            trainer = PrefixRFTTrainer(
                model, reward, PrefixRFTConfig(method=method, **settings), **shared
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    lengths = [
        h["completions/mean_length"]
        for h in trainer.state.log_history
        if "completions/mean_length" in h
    ]
    return clock.seconds, statistics.mean(lengths)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("step.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {v: [] for v in VARIANTS}
    lengths: dict[str, list[float]] = {v: [] for v in VARIANTS}
    rounds: dict[str, list[float]] = {
        "trl / grpo": [],
        "prefix_rft / grpo": [],
        "prefix_rft / grpo, per token": [],
    }
    for number in range(args.rounds):
        # A different one goes first in each round.
        order = VARIANTS[number % 3 :] + VARIANTS[: number % 3]
        medians, mean = {}, {}
        for variant in order:
            times, mean[variant] = run(variant, args.steps, seed=number)
            seconds[variant] += times
            lengths[variant].append(mean[variant])
            medians[variant] = statistics.median(times)
        rounds["trl / grpo"].append(medians["trl"] / medians["grpo"])
        step = medians["prefix_rft"] / medians["grpo"]
        rounds["prefix_rft / grpo"].append(step)
        rounds["prefix_rft / grpo, per token"].append(step / (mean["prefix_rft"] / mean["grpo"]))
        print({k: round(v, 3) for k, v in medians.items()}, flush=True)
    result = {
        "command": f"python benchmarks/step.py --rounds {args.rounds} --steps {args.steps}",
        "machine": describe_machine(),
        "git": git_state(),
        "cpu_seconds_per_step": {v: round(statistics.median(s), 3) for v, s in seconds.items()},
        "mean_completion_length": {v: round(statistics.mean(s), 1) for v, s in lengths.items()},
        "ratios": {
            name: {
                "median": round(statistics.median(x), 3),
                "min": round(min(x), 3),
                "max": round(max(x), 3),
            }
            for name, x in rounds.items()
        },
    }
    print(json.dumps(result["ratios"], indent=2))
    write_json(args.output, result)


if __name__ == "__main__":
    main()
