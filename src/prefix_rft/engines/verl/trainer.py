"""Our part of verl's V1 trainers: plan prefixes, turn rewards into advantages, watch the sampler.

A mixin in front of each of verl's three trainers. It decorates their steps with ``super()`` and
copies none of them. What it computes goes into columns of verl's batches; the actor (``worker``)
reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import open_dict
from tensordict import NonTensorStack, TensorDict
from torch import Tensor
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.protocol import DataProto
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.workers.utils.padding import response_to_nested

from prefix_rft.core import selection_seed
from prefix_rft.data import DataError
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.engines.metrics import prefix_bounds
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.state import MethodState, hash_of_rows
from prefix_rft.engines.verl import require_verl
from prefix_rft.engines.verl.columns import (
    ADVANTAGE,
    ATTEMPT,
    DROPPED,
    GROUP,
    KEEP,
    PLAN,
    PREFIX,
    REWARD,
    TRUNCATED,
    WHOLE,
    padded,
)
from prefix_rft.engines.verl.credit import CreditedRows, verdict_shares
from prefix_rft.engines.verl.dataset import Prompts
from prefix_rft.engines.verl.loss import means
from prefix_rft.engines.verl.memory import learn
from prefix_rft.engines.verl.prompt_plan import PromptPlan
from prefix_rft.engines.verl.queue import get, put
from prefix_rft.engines.verl.rollouts import FIELDS, rollouts_of
from prefix_rft.engines.verl.settings import MODES, configure
from prefix_rft.engines.verl.teacher_prompts import TeacherPrompts
from prefix_rft.engines.verl.teachers import TEACHER
from prefix_rft.engines.verl.worker import (
    FOLLOWED,
    MOVED,
    STEP,
    TOTAL,
    DetachMethodWorker,
    MethodWorker,
)
from prefix_rft.runs.rollouts import cut_rollouts, write_generation
from prefix_rft.support.errors import RunError

TRAINERS = {
    "sync": PPOTrainerSync,
    "colocate_async": PPOTrainerColocateAsync,
    "separate_async": PPOTrainerSeparateAsync,
}
"""verl's trainers by their mode."""

MODELS = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef, Role.RefPolicy)


class MethodTrainer:
    """Mixin in front of one of verl's trainers.

    Attributes:
        mode: verl's name of that trainer.
    """

    mode: str
    config: Any
    train_dataset: Prompts
    global_steps: int = 0
    local_trigger_step: int
    total_training_steps: int
    teacher_prompts: TeacherPrompts | None = None
    tokenizer: Any
    actor_rollout_wg: Any

    def __init__(self, config: Any) -> None:
        require_verl()
        self.block, self.method = configure(config)
        with open_dict(config):
            # verl chooses its buffer, and how it refills it, by the name of the mode.
            config.trainer.v1.trainer_mode = self.mode
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        self.method_state = MethodState(self.method.name)

    # ---- start ---------------------------------------------------------------------------------

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # pyright: ignore[reportAttributeAccessIssue]
        report = self.train_dataset.report
        print(report)
        if self.method.needs_demonstrations and not (report and report.demonstrations):
            drops = f" ({report.drops})" if report and report.dropped else ""
            raise DataError(
                f"method '{self.method.name}' needs demonstrations, but no row has one{drops}; "
                "name their column with prefix_rft.columns, or use dr_grpo"
            )
        self.method_state.dataset = hash_of_rows(self.train_dataset.rows)
        if self.method.teachers:
            rest = self.config, self.train_dataset, self.tokenizer, self.moment()
            self.teacher_prompts = TeacherPrompts.of(self.method, *rest)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()  # pyright: ignore[reportAttributeAccessIssue]
        mapping: dict[Any, Any] = self.role_worker_mapping  # pyright: ignore[reportAttributeAccessIssue]
        for role in MODELS:
            if role in mapping:
                theirs = mapping[role].__ray_metadata__.modified_class
                detached = issubclass(theirs, DetachActorWorker)
                mapping[role] = ray.remote(DetachMethodWorker if detached else MethodWorker)

    # ---- rollouts ------------------------------------------------------------------------------

    def _next_train_batch(self, *args: Any, **kwargs: Any) -> Any:
        # Only here: a validation batch has no plan, so nothing of it starts from a demonstration.
        batch = super()._next_train_batch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        plans = [self.plan(int(index)).plain() for index in batch["index"]]
        # One for each row: what all rows share is not kept with prompts for a later resume.
        batch.set(PLAN, NonTensorStack(*plans))  # pyright: ignore[reportAbstractUsage]
        return batch

    def moment(self) -> RunPoint:
        """What planning needs to know of the run, now."""
        planner = self.method.planner
        return RunPoint(
            num_generations=int(self.config.actor_rollout_ref.rollout.n),
            seed=self.block.seed,
            step=self.global_steps - 1,
            total_steps=self.total_training_steps,
            max_completion_length=int(self.config.data.max_response_length),
            newlines=self.train_dataset.renderer.newlines if planner.needs_boundaries else {},
            examples=self.method_state.examples,
            shared=self.method_state.shared,
            traces=self.method_state.traces,
        )

    def plan(self, index: int) -> PromptPlan:
        """Where the rollouts of a prompt start."""
        row: Any = self.train_dataset.rows[index]
        return PromptPlan.of(self.method, {EXAMPLE: index, IDS: row[IDS]}, self.moment())

    # ---- between rollouts and update -----------------------------------------------------------

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_old_log_prob(batch, metrics)  # pyright: ignore[reportAttributeAccessIssue]
        if not self.config.actor_rollout_ref.rollout.calculate_log_probs:
            return batch
        data = get(
            batch, "rollout_log_probs", "old_log_probs", "response_mask", "responses", PREFIX
        )
        old, mask = padded(data["old_log_probs"]), padded(data["response_mask"]).bool()
        start_mask = (torch.arange(mask.size(1)) < data[PREFIX][:, None]) & mask
        sampler = torch.where(start_mask, old, padded(data["rollout_log_probs"]))
        batch = put(batch, rollout_log_probs=response_to_nested(sampler, data["response_mask"]))
        # verl has taken its own from what stood in the place of the prefix.
        drawn = mask & ~start_mask
        table = {"rollout_log_probs": sampler, "old_log_probs": old, "response_mask": drawn}
        table["responses"] = padded(data["responses"])
        metrics.update(calculate_debug_metrics(DataProto(TensorDict(table, len(mask)))))
        self.check_weights(batch, (old - sampler).abs(), drawn, metrics)
        return batch

    def check_weights(self, batch: Any, apart: Tensor, where: Tensor, metrics: Any) -> None:
        """Compare the sampler's log-probs with the actor's, on what it sampled with these weights.

        Raises:
            RunError: they are too far apart.
        """
        tags = batch.tags
        fresh = [
            not t.get("is_padding", False) and t["min_global_steps"] == self.global_steps - 1
            for t in tags
        ]
        where = where & torch.tensor(fresh)[:, None]
        if self.block.weight_check is None or not bool(where.any()):
            return
        mean = float(apart[where].double().mean())
        metrics["sampling/sampling_logp_difference/mean"] = mean
        if not mean <= self.block.weight_check:
            raise RunError(
                f"step {self.global_steps}: sampler and actor are {mean:.3g} nats a token apart on "
                f"{int(where.sum())} tokens that were sampled with the present weights (allowed: "
                f"prefix_rft.weight_check={self.block.weight_check}): the sampler may have old "
                "weights, or another dtype or temperature"
            )

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)  # pyright: ignore[reportAttributeAccessIssue]
        method = self.method
        data = get(
            batch,
            "uid",
            "response_mask",
            "responses",
            "entropy",
            PREFIX,
            WHOLE,
            REWARD,
            ATTEMPT,
            PLAN,
            "index",
            "extra_fields",
        )
        rows = CreditedRows.of(
            method,
            data,
            batch.tags,
            int(self.config.data.max_response_length),
            self.train_dataset.renderer.eos_ids,
        )
        plans = [PromptPlan.read(p) for p in data[PLAN]]
        self.ask_teachers(batch, data, plans, rows, metrics)
        columns = {
            PREFIX: rows.prefix_N,
            WHOLE: rows.whole_N,
            REWARD: rows.reward_N,
            GROUP: rows.group_N,
            ADVANTAGE: rows.advantage_SN.T.contiguous(),
            DROPPED: rows.dropped_N,
            TRUNCATED: rows.truncated_N,
        }
        if method.selection is not None and method.selection.scope == "step":
            seed = selection_seed(self.block.seed, self.global_steps - 1)
            keep_NT = rows.keep(method, padded(data["entropy"]), seed)
            columns[KEEP] = response_to_nested(keep_NT.long(), data["response_mask"])
        for name in ("advantages", "returns"):
            columns[name] = response_to_nested(rows.shown(method), data["response_mask"])
        batch = put(batch, **columns)
        metrics.update(rows.metrics(method))
        metrics.update(verdict_shares(list(data["extra_fields"]), rows.filler_N))
        if method.rows.prefix is not None:
            # When these rows were planned, which was earlier where prompts wait.
            steps = [p.step for p, f in zip(plans, rows.filler_N, strict=True) if not f]
            metrics.update(prefix_bounds(method.rows.prefix, steps, self.total_training_steps))
        responses = [ids.tolist() for ids in data["responses"].unbind()]
        metrics.update(learn(method, self.method_state, plans, batch.keys, rows, responses))
        return batch

    def ask_teachers(
        self,
        batch: Any,
        data: Any,
        plans: Sequence[PromptPlan],
        rows: CreditedRows,
        metrics: dict[str, Any],
    ) -> None:
        """Write the prompts of the teachers that are heard, and have those that stand say all."""
        if self.teacher_prompts is None:
            return
        followed = self.method_state.followed
        lesson = self.teacher_prompts.lesson(data, batch.keys, plans, rows, self.moment(), followed)
        metrics.update(lesson.metrics)
        if not lesson.heard:
            return
        batch = put(batch, **lesson.columns)
        for m in lesson.heard:
            if not self.method.teachers[m].moves:
                temperature = self.config.actor_rollout_ref.rollout.temperature
                batch.extra_info = {TEACHER: m, "temperature": temperature}
                other = self.method.teachers[m].weights == "model"
                workers = self.actor_rollout_wg
                (workers.ask_model if other else workers.ask_teacher)(batch)

    # ---- update --------------------------------------------------------------------------------

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        moved = self.local_trigger_step > 0  # an update of this batch's cycle came before
        batch.extra_info.update(
            {
                STEP: self.global_steps - 1,
                TOTAL: self.total_training_steps,
                MOVED: moved,
                FOLLOWED: json.dumps(self.method_state.followed),
            }
        )
        batch = super()._update_actor(batch, metrics)  # pyright: ignore[reportAttributeAccessIssue]
        metrics.update(means(metrics))
        self.method_state.follow(self.method, metrics)
        return batch

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> Any:
        """verl's step; then its rollouts, before a checkpoint counts the step as done."""
        batch = super().step(metrics, timing_raw)  # pyright: ignore[reportAttributeAccessIssue]
        if folder := self.config.trainer.get("rollout_data_dir"):
            step = self.global_steps - 1
            fillers = [bool(t.get("is_padding", False)) for t in batch.tags]
            spelled = self.train_dataset.renderer.spelled
            data = get(batch, *FIELDS)
            lines = rollouts_of(self.method, data, batch.keys, fillers, step, spelled)
            write_generation(Path(folder), step, lines)
        return batch

    def _log_rollout_data(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: verl's form is not that of ``prefix-rft show`` and the report."""

    # ---- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        # Before verl's: a checkpoint counts once verl has written its last file.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        self.method_state.save(folder)
        super()._save_checkpoint()  # pyright: ignore[reportAttributeAccessIssue]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # pyright: ignore[reportAttributeAccessIssue]
        if self.global_steps:
            where = self.config.trainer.resume_from_path
            if self.config.trainer.resume_mode == "auto":
                where = os.path.join(
                    self.config.trainer.default_local_dir, f"global_step_{self.global_steps}"
                )
            self.method_state.load(Path(where))
            if written := self.config.trainer.get("rollout_data_dir"):
                cut_rollouts(Path(written), self.global_steps)


for name, mode in MODES.items():
    trainer = TRAINERS[mode]
    register_trainer(name)(
        type(f"Method{trainer.__name__}", (MethodTrainer, trainer), {"mode": mode})
    )
