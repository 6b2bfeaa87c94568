"""One rollout: prompt ids, then ids of a demonstration where the plan says so, then the sampler.

The plan comes with a prompt of a training batch and names, for each rollout of its group and each
attempt at it, how many ids of which demonstration it starts from. A prompt without a plan (every
prompt of a validation batch) is sampled from its end.
"""

from __future__ import annotations

import math
from typing import Any
from uuid import uuid4

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput

from prefix_rft.engines.verl.columns import PLAN, PREFIX, REWARD, WHOLE
from prefix_rft.engines.verl.dataset import PROMPT_IDS
from prefix_rft.engines.verl.plan import Plan
from prefix_rft.engines.verl.rewards import UNGRADED


class PrefixOutput(AgentLoopOutput):
    """What verl keeps of a rollout, with where it starts and a reward that may be missing.

    Scalars, because they stay right for the rows that verl adds to fill a batch: these have one
    token. ``as_dict`` is called once the rollout is graded.
    """

    prefix_length: int = 0
    whole: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The columns of the rollout."""
        columns = super().as_dict()
        columns.pop("prefix_length", None)
        columns.pop("whole", None)
        graded = self.extra_fields.get("reward_extra_info") or {}
        reward = self.reward_score
        missing = reward is None or graded.get(UNGRADED)
        columns[PREFIX] = torch.tensor(self.prefix_length, dtype=torch.int64)
        columns[WHOLE] = torch.tensor(self.whole)
        columns[REWARD] = torch.tensor(math.nan if missing else reward, dtype=torch.float64)
        return columns


class PrefixAgentLoop(AgentLoopBase):
    """Continues a prompt, or a prompt and a prefix, in one turn."""

    def __init__(self, trainer_config: Any, server_manager: Any, **kwargs: Any) -> None:
        # Not verl's: it builds what renders conversations, and our ids are rendered already.
        self.rollout_config = trainer_config.config.actor_rollout_ref.rollout
        self.server_manager = server_manager

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Sample one rollout, within the budget of prefix and continuation together."""
        prompt_ids = [int(t) for t in kwargs[PROMPT_IDS]]
        budget = self.rollout_config.response_length
        plan = kwargs.get(PLAN)
        known: list[int] = []
        whole = False
        if plan is not None:
            known, whole = Plan.read(plan).known(int(kwargs["session_id"]))
        if whole:
            # Sampled from no policy: as if the present one had.
            version = int(kwargs["global_steps"]) - 1
            fields = {"min_global_steps": version, "max_global_steps": version}
            sampled, logps, preempted = [], [], None
        else:
            made = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=prompt_ids + known,
                sampling_params={**sampling_params, "max_tokens": budget - len(known)},
            )
            sampled, logps, preempted = list(made.token_ids), made.log_probs, made.num_preempted
            fields = dict(made.extra_fields)
        ids = (known + sampled)[:budget]
        wanted = sampling_params.get("logprobs")
        return PrefixOutput(
            prompt_ids=prompt_ids,
            response_ids=ids,
            response_mask=[1] * len(ids),
            # The sampler never drew the prefix: the trainer puts the actor's own in its place.
            response_logprobs=([0.0] * len(known) + list(logps or []))[:budget] if wanted else None,
            num_turns=2,
            metrics={"num_preempted": -1 if preempted is None else preempted},  # pyright: ignore[reportArgumentType]
            extra_fields={**fields, "turn_scores": [], "tool_rewards": []},
            prefix_length=len(known),
            whole=whole,
        )
