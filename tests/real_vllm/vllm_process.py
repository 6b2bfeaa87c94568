"""Run by a test under torchrun with two gloo processes, an engine in each.

Usage: vllm_process.py FOLDER MODEL METHOD
"""

import sys
from pathlib import Path

import torch
from vllm_runs import colocated, distance

torch.set_num_threads(1)
folder, model, method = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
run = colocated(
    folder,
    model,
    method=method,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    steps_per_generation=2,
    ddp_find_unused_parameters=False,
)
seed = torch.initial_seed()
run.trainer.train()
record = {
    "seed": seed,
    "distances": [distance(rows) for _, rows in run.made],
    "sent": [len(call["prompts"]) for call, _ in run.asked],
    "known": [(rows["prefix_mask"] | rows["demo_mask"]).any(1) for _, rows in run.made],
    "first": run.made[0][1]["completion_ids"],
    "weights": [p.detach() for p in run.trainer.policy.parameters()],
}
torch.save(record, folder / f"rank{run.trainer.accelerator.process_index}.pt")
