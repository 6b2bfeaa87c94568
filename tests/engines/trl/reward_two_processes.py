"""Run by a test in two gloo processes, and in one: a stage that learns its reward.

Usage: reward_two_processes.py FOLDER RECIPE
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft.training import reward_learning
from prefix_rft.training.train import train

LEARNS = (
    "reward_learning={stages: 1, steps: 3, batch_size: 4, learning_rate: 0.01}",
    *("method=dr_grpo", "max_steps=2", "beta=0.1", "~reward", "use_cpu=true", "bf16=false"),
    *("micro_batch_size=4", "save_strategy=no"),
)


def main(folder: Path, recipe: str) -> None:
    """Train, and write down the pairs, the reward of a probe, and the models."""
    found: dict[str, Any] = {}
    learn, learn_from = reward_learning.learn_reward, reward_learning.train_reward_model

    def noted(setup: Any, stage: Any, trainer: Any, learnt: Any, display: Any) -> None:
        learn(setup, stage, trainer, learnt, display)
        prompts = ["1+1=", "22-7="]
        ids = [[5, 6, 1], [7, 8, 9]]
        found["probe"] = learnt(prompts=prompts, completions=["", ""], completion_ids=ids)

    def paired(model: Any, tokenizer: Any, pairs: Any, *rest: Any) -> Any:
        found["pairs"] = [[list(a), list(b)] for a, b in pairs]
        return learn_from(model, tokenizer, pairs, *rest)

    import prefix_rft.training.run

    prefix_rft.training.run.learn_reward = noted
    reward_learning.train_reward_model = paired
    run = train(recipe, [*LEARNS, f"runs={folder}"], Console(quiet=True))
    found["reward"] = load_file(run / "reward_model/model.safetensors")
    found["policy"] = load_file(run / "model/model.safetensors")
    torch.save(found, folder / f"rank{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
