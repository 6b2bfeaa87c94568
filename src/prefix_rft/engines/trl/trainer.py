"""``PrefixRFTTrainer``: TRL's GRPOTrainer with demonstrations in the group and our objective.

What is overridden, always around ``super()`` or as a whole, never by copying TRL's code:

- ``_generate_and_score_completions`` plans the rows before, samples groups again that the method
  does not take as they are, and gives the rows their origin and advantages afterwards;
- ``_generate_single_turn`` puts prefix ids behind the prompt, then in front of the completion;
- ``_calculate_rewards`` hands graders our text of a completion, and keeps what they say;
- ``_get_per_token_logps_and_entropies`` packs the rows that TRL wants scored;
- ``_compute_loss`` takes the rows of a micro-batch that have a gradient, packs and scores them, and
  hands log-probs and entropies to ``core.objective``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from prefix_rft.core import Method
from prefix_rft.data.demonstrations import DemonstrationReport
from prefix_rft.data.render import Renderer
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.sampling import no_law_of_its_own
from prefix_rft.engines.trl.clock import stop_clock, template_kwargs
from prefix_rft.engines.trl.config import PrefixRFTConfig
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.held_out import EvaluatesHeldOut
from prefix_rft.engines.trl.policy import prepared
from prefix_rft.engines.trl.rollout.backend import Backend, server_errors
from prefix_rft.engines.trl.rollout.credit import credited
from prefix_rft.engines.trl.rollout.dataset import tokenized
from prefix_rft.engines.trl.rollout.generation import Attempt, Inputs, Sampled, take_new
from prefix_rft.engines.trl.rollout.hints import with_hints, without_hints
from prefix_rft.engines.trl.rollout.leak import Leaks, check_leaks
from prefix_rft.engines.trl.rollout.record import RolloutRecord
from prefix_rft.engines.trl.rollout.rounds import Rounds
from prefix_rft.engines.trl.rollout.sampler import (
    assembled,
    check_sampler,
    continuations,
    open_rows,
    serves,
    settings_of,
)
from prefix_rft.engines.trl.rollout.verdicts import Rewards, rows_unprinted, telling
from prefix_rft.engines.trl.safety.checkpointing import ResumesExactly
from prefix_rft.engines.trl.safety.made_of import made_of
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.engines.trl.safety.watch import Watched
from prefix_rft.engines.trl.scorer import PacksRows, Scorer, packing
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.update.gradient_shares import GradientShares
from prefix_rft.engines.trl.update.step import OptimizerStep
from prefix_rft.engines.trl.window import Rows, split_at
from prefix_rft.rewards import as_completion, visible
from prefix_rft.support.phases import Phases


class PrefixRFTTrainer(PacksRows, Watched, EvaluatesHeldOut, ResumesExactly, GRPOTrainer):
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
    max_completion_length: int
    num_generations: int
    renderer: Renderer
    demonstrations: DemonstrationReport | None

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
        self._attempt: Attempt | None = None
        self._update: Any = None  # the optimizer step that has begun
        bound = signature(GRPOTrainer).bind(model, reward_funcs, args, *positional, **kwargs)
        with server_errors(args):
            super().__init__(**prepared(bound.arguments, args), phases=phases)
        engine = self.vllm_generation if self.use_vllm else None
        self.backend = Backend.ready(engine, args, self.processes)
        self.tripwires.expect(float32=self.backend.in_float32(args, self.policy))
        self.notes += turn_off_dropout(self.model, self.ref_model)
        self.graders: list[Any] = [f for f in self.reward_funcs if hasattr(f, "verdicts")]
        check_leaks(args, self.graders)
        if self._is_vlm:
            raise ValueError("vision-language models are not supported yet")
        self.date_given = stop_clock(args, self._tokenizer)
        self._set_renderer()
        first, parts = self.accelerator.main_process_first(), (self.policy, self.backend)
        self.train_dataset, self.demonstrations = tokenized(
            self.train_dataset, self.renderer, self.method, args, *parts, first
        )
        check_sampler(args, self.method, self._samples_itself())
        self._make_parts()

    def tell(self, date: str) -> None:
        """Have the chat template tell another moment: that of the start of a run that goes on."""
        self.args.chat_template_date = date
        self._set_renderer()

    def _set_renderer(self) -> None:
        """How our own code renders prompts, and the chat template that TRL does it with."""
        kwargs = template_kwargs(self.args, self._tokenizer)
        self.renderer = Renderer(self._tokenizer, tuple(self.eos_token_ids), kwargs)
        self.chat_template = kwargs.get("chat_template", self.chat_template)

    def _make_parts(self) -> None:
        """What the hooks below hand their work to."""
        args, method, rows, policy = self.args, self.method, self.train_dataset, self.policy
        renderer, processes = self.renderer, self.processes
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        self.tokens = TokenCounts(self.accelerator.device)
        self.gradient_shares = GradientShares.of(args, method, policy, sharded)
        data = lambda: (self.train_dataset, self.renderer)  # noqa: E731
        self.own_state = OwnState.of(method, args, policy, data, processes, sharded)
        if self.own_state.mask is not None:
            self.add_callback(self.own_state.mask)
        column, other = args.demonstration_column, None if sharded else self.ref_model
        self.made_of = made_of(self.model, self._tokenizer, rows, self.reward_funcs, column, other)
        self.leaks = Leaks(args, self.graders, renderer, processes, self.phases)
        parts = method, self.method_state, rows, processes, renderer.end, self.leaks.limits
        self.rounds = Rounds(*parts)
        self.rollouts = RolloutRecord(args.output_dir, method, renderer.spelled, processes)
        unfit = sharded or self.aux_loss_enabled
        why_whole = packing(args, policy, self.ref_model, unfit, self.notes)
        rest = self.accelerator, self.temperature, self.tokens, True, why_whole
        self.scorer = Scorer(self._whole, *rest)
        size = args.per_device_train_batch_size
        parts = policy, size, processes, self.reference
        self.forward = Forward(self.scorer, lambda: self.model, *parts)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to those of which TRL logs the means, of training or of evaluation."""
        lists = self._metrics["train" if self.model.training else "eval"]
        for name, value in metrics.items():
            lists[name].append(value)

    def _moment(self) -> RunPoint:
        """What planning and updates need to know of the run, now."""
        boundaries = self.method.planner.needs_boundaries
        return RunPoint(
            num_generations=self.num_generations,
            seed=self.args.seed,
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            max_completion_length=self.max_completion_length,
            newlines=self.renderer.newline_ids if boundaries else frozenset(),
            examples=self.method_state.examples,
            shared=self.method_state.shared,
            traces=self.method_state.traces,
        )

    # ---- rollouts ------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Inputs) -> Rows:
        if not self.model.training:  # evaluation never sees a demonstration
            return super()._generate_and_score_completions(inputs)
        method, processes, ends = self.method, self.processes, self.eos_token_ids
        self.own_state.enter_stage(method, self.state.global_step, self.state.max_steps)
        moment = self._moment()
        generation = self.rounds.generate(moment, inputs, self._sampled)
        for name, values in generation.metrics.items():
            self._metrics["train"][name].extend(values)
        self.phases.begin("scoring")
        columns, metrics = credited(method, generation, moment, processes, self.forward, ends)
        self.add_metrics({**metrics, **self.leaks.metrics(generation)})
        rows = {**generation.sampled.rows, **columns}
        if self.args.log_rollouts:
            self.rollouts.write(moment.step, rows, generation.plans, generation.sampled.verdicts)
        return rows

    def _sampled(self, inputs: Inputs, plans: list[RowPlan]) -> Sampled:
        """Have TRL sample and reward the rows as planned."""
        lists = self._metrics["train"]
        before = {name: len(values) for name, values in lists.items()}
        attempt = self._attempt = Attempt(plans, inputs)
        try:
            hinted = with_hints(inputs, plans, self.method.planner.hint, self.renderer)
            rows = super()._generate_and_score_completions(hinted)
        finally:
            self._attempt = None
        # An attempt that is given up is no result: its numbers go with it.
        return attempt.gave(rows, take_new(lists, before))

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        attempt = self._attempt
        plans = [RowPlan(0, 0, 0)] * len(prompt_ids) if attempt is None else attempt.plans
        # Those of a stream, or of an evaluation.
        refuse_too_long(self.policy, map(len, prompt_ids), self.max_completion_length)
        training, our_sampler, sent = self.model.training, self._samples_itself(), open_rows(plans)
        self.phases.begin("sampling", len(sent) if our_sampler else None)
        if our_sampler:
            sampled, logps = self._sample(prompt_ids, plans), None
        else:
            draw, branches = super()._generate_single_turn, training and self.method.branches
            with no_law_of_its_own(self.policy):
                sampled, logps, sent = self.backend.ask(
                    draw, prompt_ids, plans, branches, images, fields, *args, **kwargs
                )
        self.phases.begin("scoring")
        if attempt is not None:
            attempt.sampled = True
        if training:
            self.tokens.draw(prompt_ids, plans, sampled, sent)
        return assembled(plans, sampled, logps, self.max_completion_length)

    def _samples_itself(self) -> bool:
        """Whether our sampler serves: the plain transformers backend with settings it knows."""
        other = self.use_vllm or self.use_transformers_continuous_batching
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not other and not sharded and serves(self.policy, self.args)

    def _sample(self, prompts: list[list[int]], plans: Sequence[RowPlan]) -> list[list[int]]:
        """Continuations of the rows that are not done; nothing for the others."""
        settings = settings_of(self.args, self.eos_token_ids, self._tokenizer.pad_token_id)
        policy, budget, tick = self.policy, self.max_completion_length, self.phases.at
        from_reference = self.method.reference.sampler == "reference" and policy.training
        frozen = self.reference if from_reference else None
        unasked = from_reference or "sampler_scores" not in self.args.savings
        attempt = None if unasked else self._attempt
        with self.accelerator.autocast(), frozen.swapped() if frozen else nullcontext():
            return continuations(policy, prompts, plans, settings, budget, tick, attempt)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, texts: Any, ids: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.phases.begin("grading", len(inputs))
        inputs, prompts = without_hints(self._attempt, inputs, prompts)
        seen = [{name: row[name] for name in visible(row)} for row in inputs]
        # TRL's own texts lack all special tokens. In place: what is graded is what TRL logs.
        texts[:] = map(as_completion, prompts, self.renderer.completions(ids))
        graders, processes = self.graders, self.processes
        with rows_unprinted(), telling(graders, self.phases):
            reward_NF = super()._calculate_rewards(seen, prompts, texts, ids, *args, **kwargs)
        rewards = Rewards.of(reward_NF, self.reward_weights, graders, len(inputs), processes)
        for name, value in rewards.metrics(processes):
            self.add_metrics({name: value})
        if self._attempt is not None:
            self._attempt.rewards = rewards
        # TRL leaves rows without any reward out of what it logs.
        return reward_NF.masked_fill(rewards.ungraded_N[:, None], torch.nan)

    # ---- loss ----------------------------------------------------------------------------------

    def _begin_update(self) -> OptimizerStep:
        """Fix targets and normalisers of the optimizer step that begins now."""
        generation: Any = self._buffered_inputs
        passes, first = divmod(self._step, len(generation))
        window = slice(first, first + self.args.gradient_accumulation_steps)
        method, state, moment = self.method, self.method_state, self._moment()
        parts = self.forward, self.processes, self.gradient_shares
        fresh = first == 0 and passes % self.num_iterations == 0
        everything = self.aux_loss_enabled or "untrained" not in self.args.savings
        rest = fresh, everything, self.args.sampler_correction
        update = OptimizerStep.begin(method, generation, window, moment, state, *parts, *rest)
        if self.args.log_rollouts and passes % self.num_iterations == 0:  # the first pass alone
            self.rollouts.kept(moment.step, update.rows, update.targets.keep_BT)
        if self.parameter_mask is not None:
            self.parameter_mask.begin_step(bool(update.rows["row_imitation"].all()))
        return update

    def _whole(
        self, model: Any, ids: Tensor, mask: Tensor, wanted_BT: Tensor, entropy: bool, aux: bool
    ) -> Any:
        return super()._get_per_token_logps_and_entropies(
            *(model, ids, mask, wanted_BT.size(1)), compute_entropy=entropy, compute_aux_loss=aux
        )

    def _get_per_token_logps_and_entropies(
        self, model: Any, ids: Tensor, mask: Tensor, width: int, *args: Any, **kwargs: Any
    ) -> Any:
        training = self.model.training
        if not training or self.scorer.why_whole is not None or torch.is_grad_enabled():
            if training:
                self.tokens.scored(mask.sum())
            whole = super()._get_per_token_logps_and_entropies
            return whole(model, ids, mask, width, *args, **kwargs)
        rows, plain = split_at(ids, mask, width), self.accelerator.unwrap_model(model)
        parts = plain, self.forward.size, self.processes, None
        forward = Forward(self.scorer, lambda: model, *parts)
        entropy = kwargs.get("compute_entropy", False)
        return forward.of(rows, rows["completion_mask"].bool(), entropy)

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if "prefix_mask" not in inputs:
            raise RuntimeError(
                "the loss batch has no prefix_mask: this version of TRL built it without "
                "_generate_and_score_completions; supported: trl>=1.16,<2"
            )
        within = self._step % (steps := self.args.gradient_accumulation_steps)
        if within == 0:
            self.phases.begin("updating", steps)
            self._update = self._begin_update()
        self.phases.next()
        part = (update := self._update).micro_batch(within)
        if part is None:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        self.ready.enter_context(self.scorer.ready(self.policy))
        aux = self.aux_loss_enabled
        logp_BT, entropy_BT, aux_loss = self.scorer.of(
            model, part.rows, part.wanted_BT, part.entropy, aux
        )
        self.finite.rows(
            part.batch,
            lambda row: f"a row of example {int(part.rows['row_example'][row])}",
            {"log-prob": logp_BT, "entropy": entropy_BT},
        )
        loss = update.loss(part, logp_BT, entropy_BT)
        if within == steps - 1:
            self.add_metrics(update.end(self.processes, self.tokens))
        # DDP, FSDP and DeepSpeed average gradients over processes; these are shares of one sum.
        total = loss * self.processes.count
        return total if aux_loss is None else total + self.router_aux_loss_coef * aux_loss / steps
