"""How a GRPOTrainer's rollouts are made and scored here; the trainer itself is in ``trainer.py``.

What is overridden, always around ``super()`` or as a whole, never by copying TRL's code:

- ``_generate_and_score_completions`` plans the rows before, samples groups again that the method
  does not take as they are, and gives the rows their origin and advantages afterwards;
- ``_tokenize_prompts`` lets rows without pictures stand beside rows with some;
- ``_generate_single_turn`` puts prefix ids behind the prompt, then in front of the completion;
- ``_calculate_rewards`` hands graders our text of a completion, and keeps what they say;
- ``_get_per_token_logps_and_entropies`` packs the rows that TRL wants scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from prefix_rft.core import Method
from prefix_rft.data.render import Renderer
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.sampling import no_law_of_its_own
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.engines.trl.pictures import (
    COUNT,
    FIELDS,
    apart,
    opened_in,
    whole,
    without_pictures,
)
from prefix_rft.engines.trl.rollout.backend import Backend
from prefix_rft.engines.trl.rollout.credit import credited
from prefix_rft.engines.trl.rollout.generation import Attempt, Inputs, Sampled, take_new
from prefix_rft.engines.trl.rollout.hints import with_hints, without_hints
from prefix_rft.engines.trl.rollout.leak import Leaks
from prefix_rft.engines.trl.rollout.record import RolloutRecord
from prefix_rft.engines.trl.rollout.rounds import Rounds
from prefix_rft.engines.trl.rollout.sampler import (
    assembled,
    continuations,
    open_rows,
    serves,
    settings_of,
)
from prefix_rft.engines.trl.rollout.teaching import Teaching
from prefix_rft.engines.trl.rollout.verdicts import Rewards, rows_unprinted, telling
from prefix_rft.engines.trl.scorer import Scorer
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.window import Rows, split_at
from prefix_rft.rewards import as_completion, visible
from prefix_rft.support.phases import Phases


class RolloutTrainer(GRPOTrainer):
    """TRL's hooks of rollouts; what they hand their work to is the trainer's to make."""

    # Narrower than what transformers and TRL declare.
    args: Any
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    max_completion_length: int
    num_generations: int
    # Made by the trainer and by its mixins.
    method: Method
    method_state: Any
    renderer: Renderer
    backend: Backend
    graders: list[Any]
    rounds: Rounds
    rollouts: RolloutRecord
    leaks: Leaks
    scorer: Scorer
    forward: Forward
    tokens: TokenCounts
    phases: Phases
    own_state: Any
    policy: Any
    processes: Any
    reference: Any
    teaching: Teaching | None
    _attempt: Attempt | None

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
            newlines=self.renderer.newlines if boundaries else {},
            examples=self.method_state.examples,
            shared=self.method_state.shared,
            traces=self.method_state.traces,
        )

    def _generate_and_score_completions(self, inputs: Inputs) -> Rows:
        if not self.model.training:  # evaluation never sees a demonstration
            return super()._generate_and_score_completions(opened_in(inputs))
        method, processes, ends = self.method, self.processes, self.eos_token_ids
        self.own_state.enter_stage(method, self.state.global_step, self.state.max_steps)
        moment = self._moment()
        generation = self.rounds.generate(moment, inputs, self._sampled)
        for name, values in generation.metrics.items():
            self._metrics["train"][name].extend(values)
        self.phases.begin("scoring")
        columns, metrics = credited(method, generation, moment, processes, self.forward, ends)
        self.add_metrics({**metrics, **self.leaks.metrics(generation)})
        if self.teaching is not None:
            told, metrics = self.teaching.attach(generation, moment, self.method_state.followed)
            columns |= told
            self.add_metrics(metrics)
        rows = {**generation.sampled.rows, **columns}
        if self.args.log_rollouts:
            self.rollouts.write(moment.step, rows, generation)
        return whole(rows)

    def _sampled(self, inputs: Inputs, plans: list[RowPlan]) -> Sampled:
        """Have TRL sample and reward the rows as planned."""
        lists = self._metrics["train"]
        before = {name: len(values) for name, values in lists.items()}
        attempt = self._attempt = Attempt(plans, inputs)
        try:
            hinted = with_hints(inputs, plans, self.method.planner.hint, self.renderer)
            rows = super()._generate_and_score_completions(opened_in(hinted))
        finally:
            self._attempt = None
        # An attempt that is given up is no result: its numbers go with it.
        return attempt.gave(apart(rows), take_new(lists, before))

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        ids, images, fields = super()._tokenize_prompts(prompts)
        # Where some rows have pictures, processors want a list of the others as well.
        return ids, None if images is None else [x or [] for x in images], fields

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        attempt = self._attempt
        plans = [RowPlan(0, 0, 0)] * len(prompt_ids) if attempt is None else attempt.plans
        # A guided row is sampled from a teacher's prompt; TRL keeps its own, behind which it is
        # trained.
        both = zip(plans, prompt_ids, strict=True)
        prompt_ids = [list(plan.guided) or ids for plan, ids in both]
        # Those of a stream, or of an evaluation.
        refuse_too_long(self.policy, map(len, prompt_ids), self.max_completion_length)
        training, our_sampler, sent = self.model.training, self._samples_itself(), open_rows(plans)
        self.phases.begin("sampling", len(sent) if our_sampler else None)
        if our_sampler:
            sampled, logps = self._sample(prompt_ids, plans), None
        else:
            draw, branches = super()._generate_single_turn, training and self.method.branches
            with no_law_of_its_own(self.policy), self._sampling_policy():
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

    @property
    def _from_reference(self) -> bool:
        """Whether the reference is sampled from now, and not the policy."""
        return self.method.reference.sampler == "reference" and self.policy.training

    def _sampling_policy(self) -> AbstractContextManager[None]:
        """Inside this context the model has the weights that are to be sampled from."""
        return self.reference.swapped() if self._from_reference else nullcontext()

    def _sample(self, prompts: list[list[int]], plans: Sequence[RowPlan]) -> list[list[int]]:
        """Continuations of the rows that are not done; nothing for the others."""
        settings = settings_of(self.args, self.eos_token_ids, self._tokenizer.pad_token_id)
        policy, budget, tick = self.policy, self.max_completion_length, self.phases.at
        unasked = self._from_reference or "sampler_scores" not in self.args.savings
        attempt = None if unasked else self._attempt
        with self.accelerator.autocast(), self._sampling_policy():
            return continuations(policy, prompts, plans, settings, budget, tick, attempt)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, texts: Any, ids: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.phases.begin("grading", len(inputs))
        inputs, prompts = without_hints(self._attempt, *without_pictures(inputs, prompts))
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

    def _whole(
        self, model: Any, ids: Tensor, mask: Tensor, wanted_BT: Tensor, *more: bool, **pictures: Any
    ) -> Any:
        asked = dict(zip(("compute_entropy", "compute_aux_loss"), more, strict=True))
        score = super()._get_per_token_logps_and_entropies
        return score(model, ids, mask, wanted_BT.size(1), **asked, **pictures)

    def _get_per_token_logps_and_entropies(
        self, model: Any, ids: Tensor, mask: Tensor, width: int, *args: Any, **kwargs: Any
    ) -> Any:
        training = self.model.training
        if self._attempt is not None and self._attempt.more:  # it is all done again, with more rows
            return torch.zeros(ids.size(0), width, device=ids.device), None, None
        as_is = not training or self.scorer.why_whole is not None or torch.is_grad_enabled()
        # Where one process has pictures and another none, all go the same way.
        if as_is and not self._is_vlm:
            if training:
                self.tokens.scored(mask.sum())
            score = super()._get_per_token_logps_and_entropies
            return score(model, ids, mask, width, *args, **kwargs)
        rows, plain = split_at(ids, mask, width), self.accelerator.unwrap_model(model)
        given = {name: kwargs.get(name) for name in (COUNT, *FIELDS)}
        rows |= apart({name: x for name, x in given.items() if x is not None})
        parts = plain, self.forward.size, self.processes, None
        forward = Forward(self.scorer, lambda: model, *parts)
        entropy = kwargs.get("compute_entropy", False)
        return forward.of(rows, rows["completion_mask"].bool(), entropy)[:3]
