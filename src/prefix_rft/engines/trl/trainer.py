"""``PrefixRFTTrainer``: TRL's GRPOTrainer with demonstrations in the group and our objective.

What is overridden, always around ``super()`` or as a whole, never by copying TRL's code:

- ``_generate_and_score_completions`` plans the rows before and attaches their origin afterwards,
  and samples groups again that the method does not take as they are;
- ``_generate_single_turn`` puts prefix ids behind the prompt, then in front of the completion;
- ``_calculate_rewards`` hands the graders our text of a completion, and keeps the rewards, which
  TRL turns into advantages of its own;
- ``_prepare_inputs`` sorts the rows of each optimizer step by length;
- ``_get_per_token_logps_and_entropies`` counts tokens;
- ``_compute_loss`` hands log-probs and entropies of TRL's forward to ``core.objective``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from prefix_rft.core import Method, Targets, loss, prepare
from prefix_rft.data.demonstrations import DemonstrationReport
from prefix_rft.data.render import Renderer
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.sampling import SamplingSettings, no_law_of_its_own, supported
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.attach import attach
from prefix_rft.engines.trl.clock import stop_clock
from prefix_rft.engines.trl.config import PrefixRFTConfig
from prefix_rft.engines.trl.dataset import (
    EvaluatesPlainRows,
    fit,
    set_renderer,
    tokenize_dataset,
)
from prefix_rft.engines.trl.entropy import select_in_pool
from prefix_rft.engines.trl.gradients import GradientShares
from prefix_rft.engines.trl.kept import write_kept
from prefix_rft.engines.trl.parameter_mask import ParameterMask
from prefix_rft.engines.trl.policy import prepared
from prefix_rft.engines.trl.reference import ReferencePolicy
from prefix_rft.engines.trl.resume import ResumesExactly
from prefix_rft.engines.trl.rollouts import write_rollouts
from prefix_rft.engines.trl.rounds import generate
from prefix_rft.engines.trl.sampler import (
    assembled,
    contexts_of,
    continuations,
    one_generation_each,
)
from prefix_rft.engines.trl.scores import contrasted
from prefix_rft.engines.trl.state import keep_state
from prefix_rft.engines.trl.stats import StepStats
from prefix_rft.engines.trl.tokens import TokenCounts
from prefix_rft.engines.trl.verdicts import (
    excluded,
    log_prefix_leak,
    log_verdicts,
    pooled,
    rows_unprinted,
    telling,
)
from prefix_rft.engines.trl.watch import Watched
from prefix_rft.engines.trl.window import Rows, by_length, join, to_batch, trim
from prefix_rft.rewards import as_completion, checked, visible
from prefix_rft.support.phases import Phases


class PrefixRFTTrainer(Watched, EvaluatesPlainRows, ResumesExactly, GRPOTrainer):
    """Train on demonstrations and verifiable rewards in the same run.

    A drop-in for ``trl.GRPOTrainer``: same arguments, same reward functions, same dataset with a
    ``prompt`` column, plus a column of demonstrations (text or list of texts, empty where there is
    none). Rows without a demonstration get a plain on-policy group.

    Raises:
        ValueError: a setting that the method replaces, or a dataset that it cannot use.
    """

    _tag_names = ["trl", "grpo", "prefix-rft"]  # noqa: RUF012  (TRL's class attribute)
    _name = "Prefix-RFT"

    # Narrower than what transformers and TRL declare.
    args: PrefixRFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    processing_class: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    ref_model: Any
    accelerator: Any
    max_completion_length: int
    num_generations: int
    method_state: MethodState
    renderer: Renderer
    demonstrations: DemonstrationReport | None
    reference: ReferencePolicy | None
    parameter_mask: ParameterMask | None

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PrefixRFTConfig | None = None,
        *positional: Any,
        phases: Phases | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, PrefixRFTConfig):
            raise ValueError("PrefixRFTTrainer needs args=PrefixRFTConfig(output_dir=...)")
        self.method: Method = args.resolve_method()
        if not self.method.samples:
            raise ValueError(
                f"method '{self.method.name}' never samples: train it with DemonstrationTrainer"
            )
        for name in ("tools", "rollout_func", "environment_factory"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported: a prefix belongs to a single turn")
        if reward_funcs is not None:
            several = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
            reward_funcs = [
                f if isinstance(f, (str, torch.nn.Module)) else checked(f) for f in several
            ]
        self._plans: list[RowPlan] | None = None
        self._row_rewards: Tensor | None = None
        self._targets: Targets | None = None
        self._window: Any = None
        given = signature(GRPOTrainer).bind(model, reward_funcs, args, *positional, **kwargs)
        super().__init__(**prepared(given.arguments, args), phases=phases)
        self.notes += turn_off_dropout(self.model, self.ref_model)
        self.graders: list[Any] = [f for f in self.reward_funcs if hasattr(f, "verdicts")]
        if args.log_prefix_leak and not self.graders:
            raise ValueError("log_prefix_leak needs a reward function that grades text")
        if self._is_vlm:
            raise ValueError("vision-language models are not supported yet")
        self.date_given = stop_clock(args, self._tokenizer)
        tokenize_dataset(self)
        self._check_method()
        self.tokens = TokenCounts(self.accelerator.device)
        self.gradient_shares = GradientShares.of(self)
        keep_state(self)

    def tell(self, date: str) -> None:
        """Have the chat template tell another moment: that of the start of a run that goes on."""
        self.args.chat_template_date = date
        set_renderer(self)

    def _check_method(self) -> None:
        method = self.method
        swaps = method.interleave is not None or "resample" in (method.all_wrong, method.all_right)
        if swaps and self.demonstrations is None:
            raise ValueError(
                f"method '{method.name}' goes back to examples of the dataset, which a stream "
                "does not allow: give a dataset of known length"
            )
        if method.sampler == "reference" and not self._samples_itself():
            raise ValueError(
                f"method '{method.name}' samples from the reference policy, which needs the plain "
                "transformers backend with fast_generation"
            )

    # ---- rollouts ------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Rows:
        if not self.model.training:  # evaluation never sees a demonstration
            return super()._generate_and_score_completions(inputs)
        if self.reference is not None:
            self.reference.enter_stage()
        made = generate(self, inputs)
        self.phases.begin("scoring")
        attach(self, made)
        verdicts = [list(g.verdicts) for g in self.graders]
        if self.args.log_prefix_leak:
            log_prefix_leak(self, made.inputs, made.plans)
        if self.args.log_rollouts:
            write_rollouts(self, made.rows, made.plans, verdicts)
        return made.rows

    def score(self, inputs: list[dict[str, Any]], plans: list[RowPlan]) -> Rows:
        """Sample and reward the rows as planned; ``outcomes`` are then all processes' rewards."""
        self._plans, self._row_rewards = plans, None
        rows = super()._generate_and_score_completions(inputs)
        if self._plans is not None or self._row_rewards is None:
            raise RuntimeError(
                "this version of TRL did not call _generate_single_turn or _calculate_rewards, "
                "so no prefix was used; supported: trl>=1.16,<2"
            )
        return rows

    @property
    def outcomes(self) -> Tensor:
        """Rewards of the rows of all processes, as graded, before any price on their length."""
        assert self._row_rewards is not None  # noqa: S101  (set by score)
        return self._row_rewards

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        fields: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        plans, self._plans = self._plans, None
        if plans is None:
            plans = [RowPlan(0, 0, 0)] * len(prompt_ids)
        fit(self, map(len, prompt_ids))  # those of a stream, or of an evaluation
        training, own = self.model.training, self._samples_itself()
        self.phases.begin("sampling", sum(not plan.done for plan in plans) if own else None)
        if own:
            sampled, logps = self._sample(prompt_ids, plans), None
        else:
            contexts = contexts_of(prompt_ids, plans)
            if training and self.method.branches:
                # Rows of a group differ: each one must be sent, not one for the whole group. All
                # processes must ask for the same, also one that holds no hybrid row.
                args, kwargs = one_generation_each(args, kwargs)
            with no_law_of_its_own(self.accelerator.unwrap_model(self.model)):
                sampled, logps = super()._generate_single_turn(
                    contexts, images, fields, *args, **kwargs
                )
        self.phases.begin("scoring")
        if training:
            self.tokens.draw(prompt_ids, plans, sampled, all_sent=not own)
        return assembled(plans, sampled, logps, self.max_completion_length)

    @property
    def metrics(self) -> Any:
        """Lists by name, of which TRL logs the means: those of training or of evaluation."""
        return self._metrics["train" if self.model.training else "eval"]

    @property
    def steps_per_generation(self) -> int:
        """Micro-batches of one generation, which TRL's config has filled in."""
        steps: Any = self.args.steps_per_generation
        return steps

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding token, which TRL makes sure of."""
        pad: Any = self._tokenizer.pad_token_id
        return pad

    def _samples_itself(self) -> bool:
        """Whether our sampler serves: the plain transformers backend with settings it knows."""
        args = self.args
        return (
            args.fast_generation
            and not self.use_vllm
            and not self.use_transformers_continuous_batching
            and not self.is_deepspeed_enabled
            and not self.is_fsdp_enabled
            and not args.generation_kwargs
            and args.cache_implementation is None
            and self.repetition_penalty == 1.0
            and supported(self.accelerator.unwrap_model(self.model))
        )

    def _sample(self, prompts: list[list[int]], plans: Sequence[RowPlan]) -> list[list[int]]:
        """Continuations of the rows that are not done; nothing for the others."""
        model = self.accelerator.unwrap_model(self.model)
        settings = SamplingSettings(
            eos_token_ids=tuple(self.eos_token_ids),
            pad_token_id=self.pad_token_id,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
        )
        own = self.method.sampler == "reference" and model.training
        frozen = self.reference if own else None
        with self.accelerator.autocast(), frozen.swapped() if frozen else nullcontext():
            return continuations(
                model, prompts, plans, settings, self.max_completion_length, self.phases.at
            )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, texts: Any, ids: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.phases.begin("grading", len(inputs))
        seen = [{name: row[name] for name in visible(row)} for row in inputs]
        # TRL's own texts lack all special tokens. In place: what is graded is what TRL logs.
        texts[:] = map(as_completion, prompts, self.renderer.completions(ids))
        with rows_unprinted(), telling(self.graders, self.phases):
            reward_NF = super()._calculate_rewards(seen, prompts, texts, ids, *args, **kwargs)
        rewards, ungraded = pooled(reward_NF, self.reward_weights, excluded(self, len(inputs)))
        self._row_rewards = rewards
        log_verdicts(self, ungraded)
        # TRL leaves rows without any reward out of what it logs.
        return reward_NF.masked_fill(ungraded[:, None], torch.nan)

    # ---- loss ----------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not before and self.args.bucket_by_length:
            size = self.args.gradient_accumulation_steps
            buffered = self._buffered_inputs
            self._buffered_inputs = [
                m for s in range(0, len(buffered), size) for m in by_length(buffered[s : s + size])
            ]
        return self._buffered_inputs[self._step % self.steps_per_generation]

    def _open_window(self) -> None:
        """Fix targets and normalisers of the optimizer step that begins now."""
        size = self.args.gradient_accumulation_steps
        start = self._step % self.steps_per_generation
        rows = join(self._buffered_inputs[start : start + size])
        self._window = to_batch(rows)
        self._targets = prepare(
            self.method,
            self._window,
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            advantage_SB=contrasted(self, rows),
            keep_BT=select_in_pool(self, rows, start // size),
            all_sum=lambda x: self.accelerator.reduce(x, reduction="sum"),
        )
        write_kept(self, rows, self._targets.keep_BT)
        self._stats = StepStats()
        if self.parameter_mask is not None:
            self.parameter_mask.begin_step(bool(rows["row_imitation"].all()))

    def _close_window(self) -> None:
        """Log what the optimizer step that ends now has added up."""
        for source in (self._stats, self.tokens, self.gradient_shares):
            if source is not None:
                for name, value in source.take(self.accelerator).items():
                    self._metrics["train"][name].append(value)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self.model.training:
            self.tokens.forward(attention_mask)
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, *args, **kwargs
        )

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if "prefix_mask" not in inputs:
            raise RuntimeError(
                "the loss batch has no prefix_mask: this version of TRL built it without "
                "_generate_and_score_completions; supported: trl>=1.16,<2"
            )
        within = self._step % self.args.gradient_accumulation_steps
        if within == 0:
            self.phases.begin("updating", self.args.gradient_accumulation_steps)
            self._open_window()
        self.phases.next()
        size = len(inputs["completion_ids"])
        part = slice(within * size, (within + 1) * size)
        prompt, prompt_mask, completion, completion_mask = trim(inputs)
        outputs = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([prompt, completion], 1),
            torch.cat([prompt_mask, completion_mask], 1),
            completion.size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        assert self._targets is not None  # noqa: S101  (set by _open_window)
        rows = self._window.part(part, completion.size(1))
        targets = self._targets.part(part, completion.size(1))
        self.finite.rows(
            rows.response_mask_BT,
            lambda row: f"a row of example {int(inputs['row_example'][row])}",
            {
                "log-prob": outputs[0],
                "entropy": outputs[1],
                "old log-prob": rows.old_logp_BT,
                "reference log-prob": rows.ref_logp_BT,
            },
        )
        out = loss(self.method, rows, outputs[0], outputs[1], targets=targets)
        self._stats.add(out.stats)
        if self.gradient_shares is not None:
            self.gradient_shares.add(rows, outputs[0], outputs[1], targets)
        if within == self.args.gradient_accumulation_steps - 1:
            self._close_window()
        # DDP, FSDP and DeepSpeed average gradients over processes; these are shares of one sum.
        total = out.loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.args.gradient_accumulation_steps
            total = total + self.router_aux_loss_coef * outputs[2] / steps
        return total

    def gather_list(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in process order."""
        return gather_object(values)
