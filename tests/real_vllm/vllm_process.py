"""Run by a test under torchrun: two gloo processes that have an engine each, or share a server.

Usage: vllm_process.py FOLDER MODEL METHOD [ADDRESS]
"""

import sys
from pathlib import Path

import torch
from disk_sync import replacements
from trl.generation.vllm_client import VLLMClient
from vllm_runs import colocated, distance, even_wrong

from tiny import shaped_reward

torch.set_num_threads(1)
folder, model, method, *address = Path(sys.argv[1]), *sys.argv[2:]
where, length = {}, 128
if address:
    where, length = {"vllm_mode": "server", "vllm_server_base_url": address[0]}, None
    for name, replacement in replacements(folder / "synced", []).items():
        setattr(VLLMClient, name, replacement)
run = colocated(
    folder,
    model,
    length,
    reward=even_wrong if address else shaped_reward,
    method=method,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    steps_per_generation=2,
    ddp_find_unused_parameters=False,
    **where,
)
seed = torch.initial_seed()
run.trainer.train()
record = {
    "seed": seed,
    "distances": [distance(rows) for _, rows in run.made],
    "sent": [len(call["prompts"]) for call, _ in run.asked],
    "lacking": [sum(not plan.done for plan in plans) for plans in run.plans],
    "known": [(rows["prefix_mask"] | rows["demo_mask"]).any(1) for _, rows in run.made],
    "first": run.made[0][1]["completion_ids"],
    "weights": [p.detach() for p in run.trainer.policy.parameters()],
}
torch.save(record, folder / f"rank{run.trainer.accelerator.process_index}.pt")
