"""Run by a test under torchrun with two gloo processes, a group of eight across both.

Two updates on each generation of eight rows; the same run with and without the gradient measured.
Usage: measurements_two_processes.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch

from prefix_rft import PrefixRFTTrainer
from second.step.trl_run import Recorder
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

torch.set_num_threads(1)


def train(folder: Path, every: int) -> tuple[Any, Recorder]:
    """A run that measures the gradient every so many steps."""
    recorder = Recorder()
    trainer = PrefixRFTTrainer(
        make_model(make_tokenizer()),
        shaped_reward,
        make_config(
            folder,
            max_steps=4,
            num_generations=8,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            learning_rate=3e-3,
            temperature=0.9,
            method_options={"num_hybrid": 5},  # four rows of the first process, one of the second
            gradient_shares_every=every,
            savings=["sampler_scores"],  # rows are counted whole
            log_rollouts=True,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    recorder.watch(trainer)
    trainer.train()
    return trainer, recorder


folder = Path(sys.argv[1])
plainly, _ = train(folder / "off", 0)
trainer, recorder = train(folder, 1)
records = [r.plain() for r in recorder.records]
models = [t.accelerator.unwrap_model(t.model).state_dict() for t in (plainly, trainer)]
torch.save(
    {"records": records, "history": trainer.state.log_history, "models": models},
    folder / f"rank{trainer.accelerator.process_index}.pt",
)
