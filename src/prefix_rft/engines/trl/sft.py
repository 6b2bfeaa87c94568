"""Pure imitation methods on TRL's SFTTrainer, with the same objective as everything else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from prefix_rft.core import Batch, Method, Targets, loss, prepare
from prefix_rft.data.demonstrations import imitation_rows
from prefix_rft.methods import load


@dataclass
class DemonstrationConfig(SFTConfig):
    """Arguments of :class:`DemonstrationTrainer`: everything in TRL's ``SFTConfig``, and these."""

    method: str = field(default="sft", metadata={"help": "Imitation method."})
    method_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the method; a dict or JSON."}
    )
    demonstration_column: str = field(
        default="demonstration",
        metadata={"help": "Column with a demonstration (text), or several (list of texts)."},
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "Longer demonstrations (EOS included) are dropped."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.method_options, str):
            self.method_options = json.loads(self.method_options)
        if self.packing or self.padding_free:
            raise ValueError("packing and padding_free are not supported: rows must stay apart")
        kwargs: Any = self.dataset_kwargs or {}
        self.dataset_kwargs = {**kwargs, "skip_prepare_dataset": True}

    def resolve_method(self) -> Method:
        """The method with its options."""
        options: Any = self.method_options or {}
        return load(self.method, **options)


class DemonstrationTrainer(SFTTrainer):
    """Maximum likelihood (and its relatives) on the demonstrations of the same rows.

    The normaliser spans the whole optimizer step over all processes, so the split into
    micro-batches never changes the gradient.
    """

    _tag_names = ["trl", "sft", "prefix-rft"]  # noqa: RUF012  (TRL's class attribute)
    loss_is_scaled_for_ga = True

    # Narrower than what transformers and TRL declare.
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    accelerator: Any

    def __init__(
        self, model: Any, args: DemonstrationConfig, *, train_dataset: Any, **kwargs: Any
    ) -> None:
        self.method = args.resolve_method()
        if self.method.samples:
            raise ValueError(f"method '{self.method.name}' samples: train it with PrefixRFTTrainer")
        train_dataset, self.demonstrations = imitation_rows(
            train_dataset,
            kwargs["processing_class"],
            args.max_completion_length,
            args.demonstration_column,
        )
        self._targets: Targets | None = None
        self._row = 0
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next optimizer step; fixes the step's targets on the way."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        if samples:
            width = max(s["labels"].size(1) for s in samples)
            labels = [
                torch.nn.functional.pad(s["labels"], (0, width - s["labels"].size(1)), value=-100)
                for s in samples
            ]
            self._targets = prepare(
                self.method,
                _to_batch(torch.cat(labels).to(self.accelerator.device)),
                step=self.state.global_step,
                total_steps=self.state.max_steps,
                all_sum=lambda x: self.accelerator.reduce(x, reduction="sum"),
            )
            self._row = 0
        return samples, items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the step's loss (in evaluation, its own loss)."""
        batch = _to_batch(inputs["labels"])
        outputs = model(**{**inputs, "use_cache": False}, fused_lm_head=True)
        targets = None
        if self.model.training:
            assert self._targets is not None  # noqa: S101  (set by get_batch_samples)
            rows = slice(self._row, self._row + len(batch.tokens_BT))
            targets = self._targets.part(rows, batch.tokens_BT.size(1))
            self._row = rows.stop
        out = loss(
            self.method,
            batch,
            outputs.log_probs,
            outputs.entropy,
            self.state.global_step,
            self.state.max_steps,
            targets,
        )
        mode = "train" if self.model.training else "eval"
        for name, value in out.metrics.items():
            self._metrics[mode][name].append(value)
        total: Tensor = out.loss * (self.accelerator.num_processes if targets else 1)
        return (total, outputs) if return_outputs else total


def _to_batch(labels: Tensor) -> Batch:
    """Demonstration rows from labels, one position to the left: logits at t predict t + 1."""
    tokens = labels[:, 1:]
    target = tokens != -100
    none = torch.zeros_like(target)
    rows = torch.arange(len(tokens), device=tokens.device)
    return Batch(
        tokens,
        target,
        none,
        target,
        None,
        torch.full_like(rows, torch.nan, dtype=torch.float32),
        rows,
    )
