"""Write down what goes into each update, for tests that compute it again."""

import os

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import trainer_base

LOOK = "VERL_CPU_LOOK"


def plain(column):
    """A column as a list of rows."""
    if isinstance(column, torch.Tensor):
        return list(column.unbind()) if column.is_nested else list(column)
    return list(column)


def install(folder):
    """Save every batch that verl's trainers hand to the actor."""
    update = trainer_base.PPOTrainer._update_actor

    def _update_actor(self, batch, metrics):
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
        names = [n for n in data.keys() if n not in ("metrics", "extra_fields", "prefix_rft_plan")]  # noqa: SIM118
        found = {name: plain(data[name]) for name in names}
        found |= {
            "keys": list(batch.keys),
            "padding": [bool(t.get("is_padding", False)) for t in batch.tags],
            "versions": [(t["min_global_steps"], t["max_global_steps"]) for t in batch.tags],
            "step": self.global_steps,
            "total": self.total_training_steps,
        }
        os.makedirs(folder, exist_ok=True)
        part = f"_{self.local_trigger_step}" if self.local_trigger_step else ""
        torch.save(found, f"{folder}/batch_{self.global_steps}{part}.pt")
        return update(self, batch, metrics)

    trainer_base.PPOTrainer._update_actor = _update_actor


if folder := os.environ.get(LOOK):
    install(folder)
