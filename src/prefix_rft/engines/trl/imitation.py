"""Pure imitation methods on TRL's SFTTrainer, with the same objective as everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from prefix_rft.core import Batch, Targets, loss, prepare
from prefix_rft.data.demonstrations import imitation_rows
from prefix_rft.data.render import Renderer, end_of_text_ids
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.state import hash_of_rows
from prefix_rft.engines.trl.clock import stop_clock, template_kwargs
from prefix_rft.engines.trl.held_out import EvaluatesHeldOut
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.engines.trl.plain_rows import plain_rows
from prefix_rft.engines.trl.policy import generation_config_of, open_adapter, tokenizer_of
from prefix_rft.engines.trl.safety.checkpointing import ResumesExactly
from prefix_rft.engines.trl.safety.made_of import made_of
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.engines.trl.safety.watch import Watched
from prefix_rft.engines.trl.update.token_counts import TokenCounts


class DemonstrationTrainer(Watched, EvaluatesHeldOut, ResumesExactly, SFTTrainer):
    """Maximum likelihood (and its relatives) on the demonstrations of the same rows.

    The normaliser spans the whole optimizer step over all processes, so the split into
    micro-batches never changes the gradient.
    """

    _tag_names = ["trl", "sft", "prefix-rft"]  # noqa: RUF012  (TRL's class attribute)
    loss_is_scaled_for_ga = True

    # Narrower than what transformers and TRL declare.
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    accelerator: Any
    demonstrations: Any
    args: DemonstrationConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: Any,
        args: DemonstrationConfig,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, DemonstrationConfig):
            raise ValueError("DemonstrationTrainer needs args=DemonstrationConfig(output_dir=...)")
        self.method = args.resolve_method()
        if self.method.samples:
            raise ValueError(f"method '{self.method.name}' samples: train it with PrefixRFTTrainer")
        if train_dataset is None:
            raise ValueError("DemonstrationTrainer needs a train_dataset")
        model, tokenizer = open_adapter(model, args)
        if processing_class is None:
            processing_class = tokenizer or tokenizer_of(model)
        self.date_given = stop_clock(args, processing_class)
        ends = end_of_text_ids(processing_class, generation_config_of(model, args))

        def renderer() -> Renderer:
            return Renderer(processing_class, ends, template_kwargs(args, processing_class))

        self.renderer, self.args = renderer(), args
        plain, held_out = plain_rows(train_dataset, "train_dataset"), eval_dataset

        def tell() -> None:
            self.renderer = renderer()
            self.train_dataset, self.demonstrations = self._rows(plain)
            self.eval_dataset = self._eval_rows(held_out)

        self._tell = tell
        train_dataset, self.demonstrations = self._rows(plain)
        eval_dataset = self._eval_rows(eval_dataset)
        self._targets: Targets | None = None
        self._row = 0
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        parts = [train_dataset]
        if eval_dataset is not None:
            parts += eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for part in parts:
            lengths = (len(row["input_ids"]) for row in part)
            refuse_too_long(self.policy, lengths)
        rows, sharded = self.train_dataset, self.is_deepspeed_enabled or self.is_fsdp_enabled
        self.own_state = OwnState.of(self.method, args, self.policy, rows, self.renderer, sharded)
        if self.own_state.mask is not None:
            self.add_callback(self.own_state.mask)
        self.made_of = made_of(
            self.model, self.renderer.tokenizer, rows, (), args.demonstration_column
        )
        if self.reference is not None:  # two forwards are compared: their noise would differ
            self.notes += turn_off_dropout(self.model)

    def _rows(self, data: Any) -> Any:
        """A dataset as rows of ids and labels, and what became of its demonstrations."""
        return imitation_rows(
            data,
            self.renderer.tokenizer,
            self.args.max_completion_length,
            self.args.demonstration_column,
            self.renderer,
        )

    def _eval_rows(self, data: Any) -> Any:
        """Datasets to evaluate on as rows of ids and labels; those that are so already, and names,
        as they are.
        """
        data = plain_rows(data, "eval_dataset")
        if isinstance(data, dict):
            return {name: self._eval_rows(part) for name, part in data.items()}
        if data is None or isinstance(data, str) or "labels" in (data.column_names or ()):
            return data
        return self._rows(data)[0]

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's, on the datasets given to the trainer or on another one of the same kind."""
        return super().evaluate(self._eval_rows(eval_dataset), *args, **kwargs)

    def tell(self, date: str) -> None:
        """Have the chat template tell another moment: that of the start of a run that goes on."""
        self.args.chat_template_date = date
        self._tell()
        self.method_state.dataset = hash_of_rows(self.train_dataset)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to those of which TRL logs the means, of training or of evaluation."""
        lists = self._metrics["train" if self.model.training else "eval"]
        for name, value in metrics.items():
            lists[name].append(value)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next optimizer step; fixes the step's targets on the way."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        if samples:
            self.phases.begin("updating", len(samples))
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
                all_sum=self.processes.sum,
            )
            self._row = 0
            self._count_tokens(samples)
        return samples, items

    def _count_tokens(self, samples: list[dict[str, Any]]) -> None:
        """Log the tokens of an optimizer step: trained, and through the reference policy."""
        tokens = TokenCounts(self.accelerator.device)
        for sample in samples:
            tokens.count("trained", sample["attention_mask"])
            if self.reference is not None:
                tokens.count("forward", sample["attention_mask"])
        counts = tokens.take(self.processes)
        for name in ("tokens/forward", "tokens/trained"):
            self._metrics["train"][name].append(counts[name])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the step's loss (in evaluation, its own loss)."""
        if self.model.training:
            self.phases.next()
        batch = _to_batch(inputs["labels"])
        extra: dict[str, Any] = {"use_cache": False}
        if self.aux_loss_enabled:
            extra["output_router_logits"] = True
        if self.reference is not None:
            with torch.no_grad(), self.reference.swapped():
                scored = model(**inputs, use_cache=False, fused_lm_head=True)
            batch = replace(batch, ref_logp_BT=scored.log_probs)
        outputs = model(**{**inputs, **extra}, fused_lm_head=True)
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
        if targets is not None:
            first = self._row - len(batch.tokens_BT)
            self.finite.rows(
                batch,
                lambda row: f"row {first + row} of the step",
                {"log-prob": outputs.log_probs},
            )
        self.add_metrics(out.metrics)
        total: Tensor = out.loss * (self.processes.count if targets else 1)
        if self.aux_loss_enabled:
            # A mean over the micro-batch by construction, unlike the sums above.
            parts = self.current_gradient_accumulation_steps if targets else 1
            total = total + self.router_aux_loss_coef * outputs.aux_loss / parts
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
