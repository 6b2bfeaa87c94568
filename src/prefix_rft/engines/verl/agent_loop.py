"""One rollout: prompt ids, then ids of a demonstration where the plan says so, then the sampler.

The plan comes with a prompt of a training batch and says, for each rollout of its group and each
attempt at it, how many ids of which demonstration it starts from. A prompt without a plan (every
prompt of a validation batch) is sampled from its end.
"""

from __future__ import annotations

import math
import random
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.protocol import DataProto

from prefix_rft.core import Method
from prefix_rft.engines.verl.columns import ATTEMPT, CONTEXT, PLAN, PREFIX, REWARD, WHOLE
from prefix_rft.engines.verl.dataset import PROMPT_IDS
from prefix_rft.engines.verl.group_barrier import GroupBarrier, all_wrong
from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.engines.verl.prompt_plan import KnownIds, PromptPlan
from prefix_rft.engines.verl.rewards import UNGRADED


class PrefixOutput(AgentLoopOutput):
    """What verl keeps of a rollout, with where it starts and a reward that may be missing.

    Scalars, because they stay right for the rows that verl adds to fill a batch: these have one
    token. ``as_dict`` is called once the rollout is graded.
    """

    prefix_length: int = 0
    whole: bool = False
    context: bool = False
    attempt: int = 0

    @property
    def reward(self) -> float:
        """NaN where it has none."""
        graded = self.extra_fields.get("reward_extra_info") or {}
        missing = self.reward_score is None or graded.get(UNGRADED)
        return math.nan if missing else float(self.reward_score)  # pyright: ignore[reportArgumentType]

    def as_dict(self) -> dict[str, Any]:
        """The columns of the rollout."""
        columns = super().as_dict()
        for name in ("prefix_length", "whole", "context", "attempt"):
            columns.pop(name, None)
        columns[PREFIX] = torch.tensor(self.prefix_length, dtype=torch.int64)
        columns[WHOLE] = torch.tensor(self.whole)
        columns[CONTEXT] = torch.tensor(self.context)
        columns[ATTEMPT] = torch.tensor(self.attempt, dtype=torch.int64)
        columns[REWARD] = torch.tensor(self.reward, dtype=torch.float64)
        return columns


BARRIER = GroupBarrier()


class PrefixAgentLoop(AgentLoopBase):
    """Continues a prompt, or a prompt and a prefix, in one turn."""

    def __init__(self, trainer_config: Any, server_manager: Any, **kwargs: Any) -> None:
        # Not verl's: it builds what renders conversations, and our ids are rendered already.
        self.config = trainer_config.config
        self.rollout_config = self.config.actor_rollout_ref.rollout
        self.server_manager = server_manager

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """One rollout; where the method asks for it, again while its whole group fails."""
        plan = PromptPlan.read(kwargs[PLAN]) if kwargs.get(PLAN) is not None else None
        if plan is None:
            return await self.sample(sampling_params, kwargs, KnownIds([]))
        rollout = int(kwargs["session_id"])
        try:
            output = await self.first(sampling_params, kwargs, plan, rollout)
            for attempt in range(1, len(plan.attempts)):
                if output.reward_score is None:
                    await self.grade(output, kwargs)
                brings = (output.reward, output.whole)
                group = (str(kwargs["uid"]), f"attempt {attempt}", rollout, plan.rollouts)
                if not all_wrong(await BARRIER.meet(*group, brings), plan.solved_above):
                    break
                if plan.changes(rollout, attempt):
                    known = plan.known(rollout, attempt)
                    output = await self.sample(sampling_params, kwargs, known)
                    output.attempt = attempt
        except BaseException:
            BARRIER.leave(str(kwargs["uid"]))
            raise
        return output

    async def first(
        self, sampling_params: dict[str, Any], row: dict[str, Any], plan: PromptPlan, rollout: int
    ) -> PrefixOutput:
        """A rollout as it was planned; where rows wait for others, once it has its turn.

        All rollouts of the group meet before each turn: those that are done bring their rewards,
        the others nothing.
        """
        method, output = self.waiting_method(plan), None
        if method is None:
            return await self.sample(sampling_params, row, plan.known(rollout))
        turns = method.planner.turns(plan.rollouts)
        for turn in range(max(turns) + 1):
            rewards: list[float | None] = []
            if turn:
                if output is not None and output.reward_score is None:
                    await self.grade(output, row)
                brings = None if output is None else output.reward
                group = (str(row["uid"]), f"turn {turn}", rollout, plan.rollouts)
                rewards = await BARRIER.meet(*group, brings)
            if turns[rollout] == turn:
                known = plan.in_turn(method, rollout, rewards)
                output = await self.sample(sampling_params, row, known)
        assert output is not None  # noqa: S101  (each has one turn)
        return output

    def waiting_method(self, plan: PromptPlan) -> Method | None:
        """The run's method, if rows of its groups wait for others."""
        if not plan.waits:
            return None
        settings: Any = OmegaConf.to_container(self.rollout_config.custom[KEY], resolve=True)
        block, rollout = MethodConfig.read(settings), self.rollout_config
        return block.resolve_method(int(rollout.n), int(rollout.response_length))

    async def sample(
        self, sampling_params: dict[str, Any], row: dict[str, Any], known: KnownIds
    ) -> PrefixOutput:
        """Continue what is known, within the budget of prefix and continuation together."""
        start_ids = known.ids
        prompt_ids = [int(t) for t in row[PROMPT_IDS]]
        budget = self.rollout_config.response_length
        if known.whole:
            # Sampled from no policy: as if the present one had.
            version = int(row["global_steps"]) - 1
            fields = {"min_global_steps": version, "max_global_steps": version}
            sampled, logps, preempted = [], [], None
        else:
            reply = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=prompt_ids + start_ids,
                sampling_params={**sampling_params, "max_tokens": budget - len(start_ids)},
            )
            sampled, logps, preempted = list(reply.token_ids), reply.log_probs, reply.num_preempted
            fields = dict(reply.extra_fields)
        ids = (start_ids + sampled)[:budget]
        wanted = sampling_params.get("logprobs")
        return PrefixOutput(
            prompt_ids=prompt_ids,
            response_ids=ids,
            response_mask=[1] * len(ids),
            # The sampler never drew the prefix: the trainer puts the actor's own in its place.
            response_logprobs=([0.0] * len(start_ids) + list(logps or []))[:budget]
            if wanted
            else None,
            num_turns=2,
            metrics={"num_preempted": -1 if preempted is None else preempted},  # pyright: ignore[reportArgumentType]
            extra_fields={**fields, "turn_scores": [], "tool_rewards": []},
            prefix_length=len(start_ids),
            whole=known.whole,
            context=known.context,
        )

    async def grade(self, output: PrefixOutput, row: dict[str, Any]) -> None:
        """Have one of verl's reward workers grade a rollout, as verl does with one that is done."""
        number = random.randrange(int(self.config.reward.num_workers))
        worker: Any = ray.get_actor(f"reward_loop_worker_{number}")
        prompts, responses = (torch.tensor([x]) for x in (output.prompt_ids, output.response_ids))
        ids = torch.cat([prompts, responses], 1)
        tensors = {
            "prompts": prompts,
            "responses": responses,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(ids.size(1))[None],
        }
        cells = {key: np.fromiter([value], dtype=object, count=1) for key, value in row.items()}
        cells["__num_turns__"] = np.array([output.num_turns])
        cells["tool_extra_fields"] = np.fromiter([output.extra_fields], dtype=object, count=1)
        result = await worker.compute_score.remote(DataProto(TensorDict(tensors, 1), cells))
        output.reward_score = result["reward_score"]
        output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
