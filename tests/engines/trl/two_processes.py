"""Run by a test under torchrun with two gloo processes and eight rows a step.

Usage: two_processes.py FOLDER SCOPE SOURCE NUM_GENERATIONS
"""

import sys
from pathlib import Path

import torch

from prefix_rft import PrefixRFTTrainer
from second.step.trl_run import Recorder
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

torch.set_num_threads(1)
folder, scope, source = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tokenizer = make_tokenizer()
recorder = Recorder()
trainer = PrefixRFTTrainer(
    make_model(tokenizer, layers=2),
    shaped_reward,
    make_config(
        folder,
        max_steps=3,
        num_generations=int(sys.argv[4]),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        temperature=0.9,
        method_options={"entropy_scope": scope, "entropy_source": source},
        log_rollouts=True,
        ddp_find_unused_parameters=False,
    ),
    train_dataset=make_rows(),
    processing_class=tokenizer,
    callbacks=[recorder],
)
recorder.watch(trainer)
trainer.train()
rank = trainer.accelerator.process_index
torch.save([r.plain() for r in recorder.records], folder / f"rank{rank}.pt")
