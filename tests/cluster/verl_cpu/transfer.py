"""Weights from trainers to samplers with machines of their own, by a file; and set aside."""

import asyncio
import os

import torch
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry
from verl.utils import fsdp_utils

FOLDER = "VERL_CPU_LOOK"


@CheckpointEngineRegistry.register("verl_cpu_file")
class FileEngine(CheckpointEngine):
    """The first process of the actor writes a file of each version; samplers wait for it."""

    def __init__(self, bucket_size, is_master=False):
        self.is_master = is_master

    def prepare(self):
        return {}

    @classmethod
    def build_topology(cls, actor_wg_world_size, rollout_world_size, metadata):
        return {}, {}

    def init_process_group(self):
        pass

    def finalize(self):
        pass

    @staticmethod
    def path(version):
        return f"{os.environ[FOLDER]}/transfer_{version}.pt"

    async def send_weights(self, weights, global_steps=None):
        found = {name: weight.detach().cpu().clone() for name, weight in weights}
        if self.is_master:
            os.makedirs(os.environ[FOLDER], exist_ok=True)
            path = self.path(global_steps)
            torch.save(found, path + ".part")
            os.replace(path + ".part", path)

    async def receive_weights(self, global_steps=None):
        while not os.path.exists(self.path(global_steps)):
            await asyncio.sleep(0.1)
        for name, weight in torch.load(self.path(global_steps), weights_only=True).items():
            yield name, weight


# verl sets weights aside with ``.cpu()``, which makes a copy of what is on an accelerator only.
_save = fsdp_utils.fsdp2_sharded_save_to_cpu


def _copy(model):
    state, spec = _save(model)
    return {name: (shard.clone(), own) for name, (shard, own) in state.items()}, spec


fsdp_utils.fsdp2_sharded_save_to_cpu = _copy
