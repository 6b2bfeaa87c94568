"""Pure imitation methods on TRL's SFTTrainer, with the same objective as everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from prefix_rft.core import Batch, Targets, loss, prepare
from prefix_rft.data.demonstrations import ASKED, imitation_rows
from prefix_rft.data.files import PLACE
from prefix_rft.data.render import Renderer, end_of_text_ids
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.state import hash_of_rows
from prefix_rft.engines.trl.clock import stop_clock, template_kwargs
from prefix_rft.engines.trl.held_out import EvaluatesHeldOut
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.engines.trl.picture_collator import PictureCollator
from prefix_rft.engines.trl.pictures import COUNT, FIELDS, apart, refuse_pictures
from prefix_rft.engines.trl.plain_rows import plain_rows
from prefix_rft.engines.trl.policy import generation_config_of, open_adapter, tokenizer_of
from prefix_rft.engines.trl.safety.checkpointing import ResumesExactly
from prefix_rft.engines.trl.safety.made_of import made_of
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.engines.trl.safety.watch import Watched
from prefix_rft.engines.trl.scorer import PacksRows, Scorer, packing
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.window import split_at


class DemonstrationTrainer(PacksRows, Watched, EvaluatesHeldOut, ResumesExactly, SFTTrainer):
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
        reads = self.renderer.processor is not None
        refuse_pictures(reads, plain, args, sharded=False)
        if reads:
            data_collator = data_collator or PictureCollator(lambda: self.renderer)

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
            refuse_too_long(self.policy, (len(row["input_ids"]) for row in part))
        rows, sharded = self.train_dataset, self.is_deepspeed_enabled or self.is_fsdp_enabled
        refuse_pictures(reads, rows, args, sharded)
        parts = self.method, args, self.policy, lambda: (self.train_dataset, self.renderer)
        self.own_state = OwnState.of(*parts, self.processes, sharded)
        if self.own_state.mask is not None:
            self.add_callback(self.own_state.mask)
        rest = processing_class, rows, (), args.demonstration_column
        self.made_of = made_of(self.model, *rest)
        if self.reference is not None:  # two forwards are compared: their noise would differ
            self.notes += turn_off_dropout(self.model)
        self.tokens = TokenCounts(self.accelerator.device)
        why_whole = packing(args, self.policy, (), sharded or self.aux_loss_enabled, self.notes)
        self.scorer = Scorer(self._whole, self.accelerator, 1.0, self.tokens, False, why_whole)

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

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = getattr(self.train_dataset, "column_names", None) or ()
        kept = [c for c in columns if c.startswith(ASKED) or c == PLACE]
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or ()), *kept]))

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
        if not self.model.training:
            outputs = self._outputs(model, inputs)
            batch = replace(batch, ref_logp_BT=self._reference(model, inputs))
            own = loss(
                self.method,
                *(batch, outputs.log_probs, outputs.entropy),
                *(self.state.global_step, self.state.max_steps),
            )
            self.add_metrics(own.metrics)
            total = own.loss
            if self.aux_loss_enabled:
                total = total + self.router_aux_loss_coef * outputs.aux_loss
            return (total, outputs) if return_outputs else total
        return self._share(model, inputs, batch)

    def _share(self, model: Any, inputs: dict[str, Any], batch: Batch) -> Tensor:
        """A micro-batch's share of the loss of the step."""
        self.phases.next()
        targets = self._targets
        assert targets is not None  # noqa: S101  (set by get_batch_samples)
        first = self._row
        self._row += len(batch.tokens_BT)
        part = targets.part(slice(first, self._row), batch.tokens_BT.size(1))
        rows = split_at(inputs["input_ids"], inputs["attention_mask"], batch.tokens_BT.size(1))
        rows |= apart({name: inputs[name] for name in (COUNT, *FIELDS) if name in inputs})
        if self.reference is not None:
            with torch.no_grad(), self.reference.swapped(), self.scorer.ready(self.policy):
                scored = self.scorer.of(model, rows, batch.response_mask_BT, False)
            batch = replace(batch, ref_logp_BT=scored.logp_BT)
        self.ready.enter_context(self.scorer.ready(self.policy))
        asked = rows, batch.response_mask_BT, True, self.aux_loss_enabled
        logp_BT, entropy_BT, aux, _ = self.scorer.of(model, *asked)
        out = loss(self.method, batch, logp_BT, entropy_BT, targets=part)
        self.finite.rows(batch, lambda row: f"row {first + row} of the step", {"log-prob": logp_BT})
        self.add_metrics(out.metrics)
        if self._row == len(targets.keep_BT):
            counts = self.tokens.take(self.processes)
            self.add_metrics({k: counts[k] for k in ("tokens/forward", "tokens/trained")})
        total: Tensor = out.loss * self.processes.count
        if aux is None:
            return total
        # A mean over the micro-batch by construction, unlike the sums above.
        return total + self.router_aux_loss_coef * aux / self.current_gradient_accumulation_steps

    def _reference(self, model: Any, inputs: dict[str, Any]) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.reference.swapped():
            return self._outputs(model, inputs).log_probs

    def _outputs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's outputs of whole rows, of the tokens that have a label."""
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        given = {name: value for name, value in inputs.items() if name != COUNT}
        return model(**given, use_cache=False, fused_lm_head=True, **extra)

    def _whole(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        wanted_BT: Tensor,
        *asked: bool,
        **pictures: Any,
    ) -> Any:
        entropy, aux = asked
        labels = torch.full_like(ids, -100)
        labels[:, -wanted_BT.size(1) :] = ids[:, -wanted_BT.size(1) :].where(wanted_BT, -100)
        rows = {"input_ids": ids, "attention_mask": mask, "labels": labels, **pictures}
        out = self._outputs(model, rows)
        return out.log_probs, out.entropy if entropy else None, out.aux_loss if aux else None


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
