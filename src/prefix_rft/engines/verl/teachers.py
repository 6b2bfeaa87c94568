"""Teachers in the processes of the actor: weights beside its own, and what they say of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from prefix_rft.core import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.engines.kept_weights import KeptWeights, move, precisions
from prefix_rft.engines.verl.columns import asked, said, taught
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

LOG_PROB = (
    "log_prob_micro_batch_size",
    "log_prob_micro_batch_size_per_gpu",
    "log_prob_max_token_len_per_gpu",
    "log_prob_use_dynamic_bsz",
)
"""Settings of verl's reference policy that its worker has under other names."""

TEACHER = "prefix_rft_teacher"
"""Which of the method's teachers is asked."""


class Teachers:
    """A method's teachers on one of the actor's processes.

    Args:
        method: the method with its teachers.
        actor: verl's worker that has the policy.
        models: those that have teachers which are other models, by the teachers' names.
    """

    def __init__(
        self, method: Method, actor: TrainingWorker, models: Mapping[str, TrainingWorker]
    ) -> None:
        self.method, self.actor, self.models = method, actor, models
        self.updates = 0
        self.file = f"teachers-{dist.get_rank() + 1:05d}-of-{dist.get_world_size():05d}.json"
        engine: Any = actor.engine
        self.kept = {
            name: KeptWeights(engine.module, name, dtype)
            for name, dtype in precisions(method.teachers).items()
        }

    def begin(self, data: Any) -> None:
        """Begin an update: those that follow the policy do so, those that move score its rows.

        Args:
            data: the rows of this process, which are given the columns.
        """
        move(self.kept, self.method.teachers, self.updates)
        self.updates += 1
        config = self.actor.engine_config
        sizes = {
            "micro_batch_size_per_gpu": config.micro_batch_size_per_gpu,
            "max_token_len_per_gpu": config.max_token_len_per_gpu,
        }
        for m, teacher in enumerate(self.method.teachers):
            if teacher.moves and asked(m) in data.keys():  # noqa: SIM118  (a TensorDict)
                data[said(m)] = self.of(m, data, **sizes)

    def of(self, m: int, data: Any, **sizes: Any) -> Tensor | None:
        """Log-probs of the responses behind a teacher's prompts, 0 in rows that it does not teach.

        Args:
            m: which of the method's teachers.
            data: the rows of this process.
            sizes: rows or tokens of a micro-batch, in place of those of other forwards.

        Returns:
            a nested tensor, or None where another process has what comes out.
        """
        teacher = self.method.teachers[m]
        taught_B = data[taught(m)].bool().tolist()
        prompts, responses = data[asked(m)].unbind(), data["responses"].unbind()
        # Nothing is to be known of a row that is not taught; but each process has as many rows.
        both = zip(prompts, responses, taught_B, strict=True)
        ids = [torch.cat([p, r]) if told else p for p, r, told in both]
        rows = tu.get_tensordict(
            {
                "input_ids": torch.nested.as_nested_tensor(ids, layout=torch.jagged),
                "position_ids": torch.nested.as_nested_tensor(
                    [torch.arange(len(x), device=x.device) for x in ids], layout=torch.jagged
                ),
                "loss_mask": torch.ones(len(ids), dtype=torch.int64),
            },
            {
                "temperature": tu.get(data, "temperature"),
                "disable_auto_offload": tu.get(data, "disable_auto_offload", False),
                "no_lora_adapter": teacher.weights == "adapter_off",
                "calculate_entropy": False,
                "compute_loss": False,
                **sizes,
            },
        )
        with self._weights(teacher), torch.no_grad():
            out: Any = self.models.get(teacher.name, self.actor).infer_batch(rows)
        if out is None:
            return None
        found = zip(out["log_probs"].unbind(), responses, taught_B, strict=True)
        # What a position says is of the token behind it.
        logps = [x[-len(r) - 1 : -1] if told else x.new_zeros(len(r)) for x, r, told in found]
        return torch.nested.as_nested_tensor(logps, layout=torch.jagged)

    def _weights(self, teacher: Teacher) -> AbstractContextManager[None]:
        """Inside this context the policy has the teacher's weights."""
        kept = self.kept.get(teacher.name)
        return nullcontext() if kept is None else kept.swapped()

    def save(self, folder: Path) -> None:
        """Write what this process has of them beside verl's own files of a checkpoint.

        Raises:
            UserError: a file cannot be written.
        """
        if self.kept:
            write_text(folder / self.file, json.dumps({"updates": self.updates}) + "\n")
        for kept in self.kept.values():
            kept.save(folder)

    def load(self, folder: Path) -> None:
        """Take over what :meth:`save` wrote.

        Raises:
            UserError: a file is missing, damaged, or of another run.
        """
        if not self.kept:
            return
        if not (folder / self.file).is_file():
            raise UserError(
                f"checkpoint '{folder}' has no {self.file}: its run had no teacher of such "
                "weights, or other processes"
            )
        self.updates = json.loads((folder / self.file).read_text(encoding="utf-8"))["updates"]
        for kept in self.kept.values():
            kept.load(folder)


def model_worker(config: Any, reference: Any, path: str) -> TrainingWorker:
    """A model on the actor's processes that only scores, built as verl builds its reference policy.

    Args:
        config: verl's ``actor_rollout_ref``.
        reference: its ``ref`` as it is configured.
        path: the model.
    """
    ref: Any = OmegaConf.to_container(reference, resolve=True)
    batches = {k.removeprefix("log_prob_"): ref.pop(k) for k in list(ref) if k in LOG_PROB}
    ref |= {
        "ppo_mini_batch_size": config.actor.ppo_mini_batch_size,
        "ppo_micro_batch_size": batches.get("micro_batch_size"),
        "ppo_micro_batch_size_per_gpu": batches.get("micro_batch_size_per_gpu"),
        "ppo_max_token_len_per_gpu": batches.get("max_token_len_per_gpu"),
        "use_dynamic_bsz": batches.get("use_dynamic_bsz", False),
    }
    settings: Any = OmegaConf.create({"ref": ref, "model": model_settings(config, path)})
    scores: Any = omega_conf_to_dataclass(settings.ref)
    model: Any = omega_conf_to_dataclass(settings.model)
    scores.model_config = model
    engine = scores.engine
    engine.use_dynamic_bsz = ref["use_dynamic_bsz"]
    engine.infer_max_token_len_per_gpu = ref["ppo_max_token_len_per_gpu"]
    engine.infer_micro_batch_size_per_gpu = ref["ppo_micro_batch_size_per_gpu"]
    engine.use_remove_padding = model.use_remove_padding
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=engine,
            optimizer_config=scores.optim,
            checkpoint_config=scores.checkpoint,
        )
    )
    worker.reset()
    return worker


def model_settings(config: Any, path: str) -> dict[str, Any]:
    """verl's settings of a model like the policy's, without what is the policy's own.

    Args:
        config: verl's ``actor_rollout_ref``.
        path: the model.
    """
    settings: Any = OmegaConf.to_container(config.model, resolve=True)
    own = dict(settings.get("override_config") or {})
    kept = {k: own[k] for k in ("attn_implementation",) if k in own}
    return {
        **settings,
        "path": path,
        "hf_config_path": None,
        "tokenizer_path": None,
        "override_config": kept,
        "lora_rank": 0,
        "lora": {},
        "lora_adapter_path": None,
        "mtp": {"_target_": settings["mtp"]["_target_"], "enable": False},
    }
