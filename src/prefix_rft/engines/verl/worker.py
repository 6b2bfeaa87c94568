"""verl's actor with our optimizer step: targets are fixed over the whole mini-batch, then the loss.

verl calls ``train_batch`` once for each optimizer step, with this process's rows of it. That is
where advantages, selected tokens and normalisers are settled, over all processes, so that the split
into micro-batches and processes changes nothing.
"""

from __future__ import annotations

import json
import logging
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from prefix_rft.core import Batch, Method, prepare, select_prefix, selection_seed
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.verl.columns import (
    ADVANTAGE,
    KEEP,
    padded,
    put_targets,
    said,
    to_batch,
)
from prefix_rft.engines.verl.loss import method_loss
from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.engines.verl.teachers import TEACHER, Teachers, model_worker

logger = logging.getLogger("prefix_rft")

STEP, TOTAL = "prefix_rft_step", "prefix_rft_total_steps"
FOLLOWED = "prefix_rft_followed"
"""What coefficients remember of the metrics that they follow, as JSON."""
MOVED = "prefix_rft_moved"
"""The policy has been updated since it gave the batch its log-probs."""


class MethodActor(TrainingWorker):
    """Trains by a method.

    Attributes:
        method: set once the worker is made.
        seed: the seed of random selections.
        teachers: the method's; None where it has none.
    """

    method: Method
    seed: int
    teachers: Teachers | None = None
    moved = False
    """The policy has moved since the rollouts of this step were looked at."""

    def train_mini_batch(self, data: Any) -> Any:
        """verl's loop over the mini-batches of a step."""
        self.moved = bool(tu.get(data, MOVED, False))
        return super().train_mini_batch(data)

    def train_batch(self, data: Any) -> Any:
        """One optimizer step."""
        if self.teachers is not None:
            self.teachers.begin(data)
        batch = to_batch(data)
        targets = prepare(
            self.method,
            batch,
            step=tu.get(data, STEP),
            total_steps=tu.get(data, TOTAL),
            advantage_SB=padded(data[ADVANTAGE]).T,
            keep_BT=self.keep(data, batch),
            all_sum=self.all_sum,
            followed=json.loads(tu.get(data, FOLLOWED, "{}")),
        )
        put_targets(data, targets)
        self.moved = True
        return super().train_batch(data)

    @property
    def group(self) -> Any:
        """The processes that share a step."""
        return self.engine.get_data_parallel_group()

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum over the processes that share a step."""
        total = x.to(get_device_id())
        dist.all_reduce(total, group=self.group)
        return total.to(x.device)

    def keep(self, data: Any, batch: Batch) -> Tensor:
        """Prefix tokens of these rows that keep their advantage, shape (B, T)."""
        chosen, prefix_BT = self.method.selection, batch.open_prefix_BT
        if chosen is None:
            return prefix_BT
        if KEEP in data.keys():  # noqa: SIM118  (a TensorDict iterates over rows)
            return padded(data[KEEP]).bool() & prefix_BT
        current = chosen.source == "current" and self.moved
        entropy_BT = self.entropy(data) if current else padded(data["entropy"])
        seed = selection_seed(self.seed, tu.get(data, STEP))
        if chosen.scope == "row":
            return select_prefix(self.method, prefix_BT, entropy_BT, seed)
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        own_entropies = entropy_BT[prefix_BT].float().tolist()
        dist.all_gather_object(everyone, own_entropies, group=self.group)
        pool = torch.tensor([x for part in everyone for x in part])[None]
        kept = select_prefix(self.method, torch.ones_like(pool, dtype=torch.bool), pool, seed)[0]
        first = sum(map(len, everyone[: dist.get_rank(self.group)]))
        keep_BT = torch.zeros_like(prefix_BT)
        keep_BT[prefix_BT] = kept[first : first + len(own_entropies)]
        return keep_BT

    def entropy(self, data: Any) -> Tensor:
        """Entropies of the present policy at the response tokens, shape (B, T)."""
        looked_at = data.copy()
        tu.assign_non_tensor(
            looked_at,
            calculate_entropy=True,
            compute_loss=False,
            no_lora_adapter=False,
            micro_batch_size_per_gpu=self.engine_config.micro_batch_size_per_gpu,
            max_token_len_per_gpu=self.engine_config.max_token_len_per_gpu,
        )
        with torch.no_grad():
            out = self.infer_batch(looked_at)
        return no_padding_2_padding(out["entropy"], data)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """As verl does; then what is kept for teachers."""
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.teachers is not None:
            self.teachers.save(Path(local_path))

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """As verl does; then what is kept for teachers."""
        super().load_checkpoint(local_path, *args, **kwargs)
        if self.teachers is not None:
            self.teachers.load(Path(local_path))


class MethodWorker(ActorRolloutRefWorker):
    """verl's worker, whose actor trains by the method of our block."""

    actor_worker_cls = MethodActor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Where TRL can be found verl 0.9 takes a class from it that TRL 1.16 no longer has. Nothing
        # in this process needs TRL, so it is not to be found here.
        sys.modules.setdefault("trl", None)  # pyright: ignore[reportArgumentType]
        super().__init__(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # pyright: ignore[reportAttributeAccessIssue]
    def init_model(self) -> None:
        """As verl does; then the method, and its teachers that are other models."""
        ref = deepcopy(self.config.get("ref"))  # verl renames some of it
        super().init_model()
        if self.actor is None:
            return
        settings: Any = OmegaConf.to_container(self.config.rollout.custom[KEY], resolve=True)
        block = MethodConfig.read(settings)
        rollout = self.config.rollout
        actor: Any = self.actor
        actor.method = block.resolve_method(int(rollout.n), int(rollout.response_length))
        actor.seed = block.seed
        self.loss_fn = partial(method_loss, actor.method)
        actor.set_loss_fn(self.loss_fn)
        module = actor.engine.module  # a list of them with pipeline stages
        for words in turn_off_dropout(*(module if isinstance(module, list) else [module])):
            if dist.get_rank() == 0:
                logger.warning(words)
        if actor.method.teachers:
            actor.teachers = self.teachers_of(actor, ref)

    def teachers_of(self, actor: MethodActor, ref: Any) -> Teachers:
        """The teachers of the actor's method; a model of their own has those that are another.

        Args:
            actor: verl's worker that has the policy.
            ref: verl's settings of a reference policy, as it is configured.
        """
        models = {
            t.name: model_worker(self.config, ref, t.model)
            for t in actor.method.teachers
            if t.weights == "model"
        }
        if models:  # their processes are one another's
            first = next(iter(models.values()))
            self.set_dispatch_collect(mesh_name="teacher", **first.get_dispatch_collect())
        return Teachers(actor.method, actor, models)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def ask_teacher(self, data: Any) -> Any:
        """What a teacher that does not move says of these rows; its weights are the actor's."""
        return self._said(data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="teacher"))
    def ask_model(self, data: Any) -> Any:
        """What a teacher that is another model says of these rows."""
        return self._said(data)

    def _said(self, data: Any) -> Any:
        """A column of its log-probs, None where another process has them."""
        m = tu.get(data, TEACHER)
        actor: Any = self.actor
        logps = actor.teachers.of(m, data)
        return None if logps is None else tu.get_tensordict({said(m): logps})


class DetachMethodWorker(MethodWorker, DetachActorWorker):
    """The same where rollouts have machines of their own."""
