"""Run by a test under torchrun: two gloo processes that have an engine each, or share a server.

Usage: vllm_process.py FOLDER MODEL METHOD [ADDRESS]
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from disk_sync import replacements
from trl.generation.vllm_client import VLLMClient
from vllm_runs import colocated, distance

from tiny import shaped_reward

torch.set_num_threads(1)


def uneven(completions: list[str], **kwargs: Any) -> list[float]:
    """All rows of the second process fail, so that it asks again and the first one does not."""
    first = os.environ["RANK"] == "0"
    return [float(first and i % 2) for i in range(len(completions))]


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
    reward=uneven if address else shaped_reward,
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
