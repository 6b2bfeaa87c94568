"""``PrefixRFTTrainer``: TRL's GRPOTrainer with demonstrations in the group and our objective.

How rollouts are made is in ``rollouts.py``. Here ``_compute_loss`` takes the rows of a micro-batch
that have a gradient, packs and scores them, and hands what it has of them to ``core.objective``.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from prefix_rft.data.demonstrations import DemonstrationReport
from prefix_rft.data.render import Renderer
from prefix_rft.engines.contexts import Contexts
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.engines.states import add_states
from prefix_rft.engines.teachers import check_columns, room_for
from prefix_rft.engines.trl.clock import stop_clock, template_kwargs
from prefix_rft.engines.trl.config import PrefixRFTConfig
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.held_out import EvaluatesHeldOut
from prefix_rft.engines.trl.pictures import logs_pictures, refuse_pictures
from prefix_rft.engines.trl.policy import prepared
from prefix_rft.engines.trl.rollout.backend import Backend, server_errors
from prefix_rft.engines.trl.rollout.dataset import tokenized
from prefix_rft.engines.trl.rollout.leak import Leaks, check_leaks
from prefix_rft.engines.trl.rollout.record import RolloutRecord
from prefix_rft.engines.trl.rollout.rounds import Rounds
from prefix_rft.engines.trl.rollout.sampler import check_sampler
from prefix_rft.engines.trl.rollout.teaching import Teaching
from prefix_rft.engines.trl.rollouts import RolloutTrainer
from prefix_rft.engines.trl.safety.checkpointing import ResumesExactly
from prefix_rft.engines.trl.safety.made_of import made_of
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.engines.trl.safety.watch import Watched
from prefix_rft.engines.trl.scorer import PacksRows, Scorer, packing
from prefix_rft.engines.trl.teachers import refuse_divergences, teacher_models
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.update.distances import Distances
from prefix_rft.engines.trl.update.gradient_shares import GradientShares
from prefix_rft.engines.trl.update.step import OptimizerStep
from prefix_rft.engines.trl.window import Rows
from prefix_rft.support.phases import Phases


class PrefixRFTTrainer(PacksRows, Watched, EvaluatesHeldOut, ResumesExactly, RolloutTrainer):
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
    ref_model: Any
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
        self.method = args.resolve_method()
        if not self.method.samples:
            raise ValueError(
                f"method '{self.method.name}' never samples: train it with DemonstrationTrainer"
            )
        self._attempt = None
        self._update: Any = None  # the optimizer step that has begun
        bound = signature(GRPOTrainer).bind(model, reward_funcs, args, *positional, **kwargs)
        with server_errors(args):
            super().__init__(**prepared(bound.arguments, args), phases=phases)
        engine = self.vllm_generation if self.use_vllm else None
        self.others = teacher_models(self.method, self.processing_class, args)
        self.backend = Backend.ready(engine, args, self.processes)
        self.tripwires.expect(float32=self.backend.in_float32(args, self.policy))
        self.notes += turn_off_dropout(self.model, self.ref_model)
        self.graders = [f for f in self.reward_funcs if hasattr(f, "verdicts")]
        check_leaks(args, self.graders)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        refuse_pictures(self._is_vlm, self.train_dataset, args, sharded)
        several = self.accelerator.num_processes > 1
        self.log_multimodal = logs_pictures(self._is_vlm, args, several)
        self.date_given = stop_clock(args, self.processing_class)
        self._set_renderer()
        first, parts = self.accelerator.main_process_first(), (self.policy, self.backend)
        self.train_dataset, self.demonstrations = tokenized(
            self.train_dataset, self.renderer, self.method, args, *parts, first
        )
        check_sampler(args, self.method, self._samples_itself(), sharded)
        self._make_parts()

    def tell(self, date: str) -> None:
        """Have the chat template tell another moment: that of the start of a run that goes on."""
        self.args.chat_template_date = date
        self._set_renderer()

    def _set_renderer(self) -> None:
        """How our own code renders prompts, and the chat template that TRL does it with."""
        kwargs = template_kwargs(self.args, self.processing_class)
        self.renderer = Renderer(self.processing_class, tuple(self.eos_token_ids), kwargs)
        self.chat_template = kwargs.get("chat_template", self.chat_template)

    def _make_parts(self) -> None:
        """What the hooks below hand their work to."""
        args, method, rows, policy = self.args, self.method, self.train_dataset, self.policy
        renderer, processes = self.renderer, self.processes
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        self.tokens = TokenCounts(self.accelerator.device, bool(method.teachers))
        self.gradient_shares = GradientShares.of(args, method, policy, sharded)
        data = lambda: (self.train_dataset, self.renderer)  # noqa: E731
        self.own_state = OwnState.of(method, args, policy, data, processes, sharded)
        if self.own_state.mask is not None:
            self.add_callback(self.own_state.mask)
        column, other = args.demonstration_column, None if sharded else self.ref_model
        processing = self.processing_class
        rest = self.reward_funcs, column, other, self.others
        self.made_of = made_of(self.model, processing, rows, *rest)
        self.leaks = Leaks(args, self.graders, renderer, processes, self.phases)
        parts = method, self.method_state, rows, processes, renderer.end, self.leaks.limits
        self.rounds = Rounds(*parts, self._guide)
        self.rollouts = RolloutRecord(args.output_dir, method, renderer.spelled, processes)
        unfit = sharded or self.aux_loss_enabled
        beside = [m for m in (self.ref_model, *self.others.values()) if m is not None]
        why_whole = packing(args, policy, beside, unfit, self.notes)
        if method.divergences:
            refuse_divergences(method, args, sharded)
            for model in (policy, *self.others.values()):
                add_states(model)
        rest = self.accelerator, self.temperature, self.tokens, True, why_whole
        self.scorer = Scorer(self._whole, *rest)
        size = args.per_device_train_batch_size
        parts = policy, size, processes, self.reference
        self.forward = Forward(self.scorer, lambda: self.model, *parts)
        self.teaching = self._teaching(size)

    def _teaching(self, size: int) -> Teaching | None:
        """What has the method's teachers score rows; ``size`` rows are one forward."""
        method, others = self.method, self.others
        if not method.teachers:
            return None
        if self._is_vlm:
            raise ValueError(f"method '{method.name}' has teachers, which read no pictures yet")
        budget = self.max_completion_length
        limits = {
            t.name: room_for(t, others.get(t.name, self.policy).config, budget)
            for t in method.teachers
        }
        check_columns(method, self.train_dataset)
        contexts = Contexts(self.renderer, self.train_dataset, limits)
        contexts.refuse_untaught(method, self._moment())
        forwards = {
            name: Forward(self.scorer, lambda m=model: m, model, size, self.processes, None)
            for name, model in others.items()
        }
        a_generation: Any = self.args.steps_per_generation
        steps = a_generation // self.args.gradient_accumulation_steps
        updates = steps * self.args.num_iterations
        parts = method, contexts, self.processes, self.forward, self.own_state.teachers
        return Teaching(*parts, forwards, updates)

    def _guide(self, example: Mapping[str, Any], plan: RowPlan, moment: RunPoint) -> Any:
        """The prompt from which a row of a group that failed is sampled."""
        assert self.teaching is not None  # noqa: S101  (a guide is a teacher)
        assert self.method.guide is not None  # noqa: S101
        return self.teaching.contexts.prompt(self.method.guide, example, plan, moment, ())[0]

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
        rest = fresh, everything, self.args.sampler_correction, self.teaching
        self.own_state.move_teachers(method, moment.step)
        update = OptimizerStep.begin(method, generation, window, moment, state, *parts, *rest)
        if self.args.log_rollouts and passes % self.num_iterations == 0:  # the first pass alone
            self.rollouts.kept(moment.step, update.rows, update.targets.keep_BT)
        if self.parameter_mask is not None:
            self.parameter_mask.begin_step(bool(update.rows["row_imitation"].all()))
        return update

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
        asked = self.method, part.targets, part.rows, part.wanted_BT
        distances = Distances.hear(*asked, self.teaching, self.temperature)
        beside = None if distances is None else distances.beside
        how = part.entropy, self.aux_loss_enabled, beside
        scores = self.scorer.of(model, part.rows, part.wanted_BT, *how)
        self.finite.rows(
            part.batch,
            lambda row: f"a row of example {int(part.rows['row_example'][row])}",
            {"log-prob": scores.logp_BT, "entropy": scores.entropy_BT},
        )
        loss, aux_loss = update.loss(part, scores, distances), scores.aux
        if within == steps - 1:
            metrics = update.end(self.processes, self.tokens)
            self.method_state.follow(self.method, metrics)
            self.add_metrics(metrics)
        # DDP, FSDP and DeepSpeed average gradients over processes; these are shares of one sum.
        total = loss * self.processes.count
        return total if aux_loss is None else total + self.router_aux_loss_coef * aux_loss / steps
