"""Which teachers are heard in a step of verl's trainer, and behind which prompts they score rows.

The driver has what a prompt needs: rewards, groups, the dataset with its demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.fs import copy_to_local

from prefix_rft.core import Method
from prefix_rft.core.targets import coefficients
from prefix_rft.core.teacher import FROM_GROUPS, Teacher
from prefix_rft.data.demonstrations import EXAMPLE
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.contexts import Contexts, Peer
from prefix_rft.engines.models import load_configs, load_tokenizer
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.engines.teachers import check_columns, check_vocabulary, room_for
from prefix_rft.engines.verl.columns import asked, taught
from prefix_rft.engines.verl.credit import CreditedRows
from prefix_rft.engines.verl.dataset import Prompts
from prefix_rft.engines.verl.prompt_plan import PromptPlan
from prefix_rft.support.errors import UserError

TOKENS = (
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
)
"""Settings that say how many tokens a micro-batch holds, where its rows are as many as fit."""


@dataclass(frozen=True)
class Lesson:
    """What teachers need to score the rows of a step.

    Attributes:
        columns: their prompts, and which rows they teach; none where no teacher is heard.
        heard: the teachers that are.
        metrics: what the engine logs of them.
    """

    columns: dict[str, torch.Tensor]
    heard: tuple[int, ...]
    metrics: dict[str, float]


class TeacherPrompts:
    """Writes the prompts of a method's teachers for the rows of a step.

    Args:
        method: the method with its teachers.
        contexts: writes a prompt.
    """

    def __init__(self, method: Method, contexts: Contexts) -> None:
        self.method, self.contexts = method, contexts

    @classmethod
    def of(
        cls, method: Method, config: Any, rows: Prompts, tokenizer: Any, moment: RunPoint
    ) -> TeacherPrompts:
        """That of a run, once its rows are read.

        Args:
            method: the method with its teachers.
            config: verl's configuration.
            rows: those that are trained on.
            tokenizer: the policy's.
            moment: the point of the run at which it begins.

        Raises:
            UserError: a teacher has no model, or one of another vocabulary; rows lack a column that
                one reads; or one would teach nobody.
        """
        check_columns(method, rows.rows)
        limits = {t.name: longest(t, config, tokenizer) for t in method.teachers}
        contexts = Contexts(rows.renderer, rows.rows, limits)
        contexts.refuse_untaught(method, moment)
        return cls(method, contexts)

    def lesson(
        self,
        data: Any,
        keys: Sequence[str],
        plans: Sequence[PromptPlan],
        rows: CreditedRows,
        moment: RunPoint,
        followed: Mapping[str, Sequence[float]],
    ) -> Lesson:
        """The prompts of the teachers that are heard in a step.

        Args:
            data: verl's columns ``index`` and ``responses``.
            keys: the key of each row, ``UID_ROLLOUT_OUTPUT``.
            plans: the plan of each row's prompt.
            rows: the rows with their rewards.
            moment: the point of the run.
            followed: what coefficients remember of the metrics that they follow.
        """
        method = self.method
        values = coefficients(method, moment.step, moment.total_steps, followed)
        read = [(s, c) for s, c in zip(method.streams, values, strict=True) if s.teacher]
        metrics = {f"{s.name}/coefficient": c for s, c in read}
        heard = {method.teacher_of(s) for s, c in read if c != 0.0}
        if not heard:
            return Lesson({}, (), metrics)
        examples, planned = self._planned(data, keys, plans, rows)
        peers = self._peers(data, planned, rows)
        columns: dict[str, torch.Tensor] = {}
        for m, teacher in enumerate(method.teachers):
            if m not in heard:
                columns[taught(m)] = torch.zeros(len(keys), dtype=torch.bool)
                continue
            prompts: list[list[int] | None] = []
            long = 0
            for example, plan in zip(examples, planned, strict=True):
                others = peers.get(plan.group, ())
                ids, too_long = (
                    (None, False)
                    if plan.filler
                    else self.contexts.prompt(teacher, example, plan, moment, others)
                )
                prompts.append(ids)
                long += too_long
            filler = [self.contexts.renderer.end]
            columns[asked(m)] = torch.nested.as_nested_tensor(
                [torch.tensor(filler if ids is None else ids) for ids in prompts],
                layout=torch.jagged,
            )
            columns[taught(m)] = torch.tensor([ids is not None for ids in prompts])
            metrics[f"{teacher.name}/too_long"] = long / sum(not p.filler for p in planned)
        return Lesson(columns, tuple(sorted(heard)), metrics)

    def _planned(
        self, data: Any, keys: Sequence[str], plans: Sequence[PromptPlan], rows: CreditedRows
    ) -> tuple[list[Mapping[str, Any]], list[RowPlan]]:
        """Each row's example, and the row as the TRL engine plans it."""
        examples, planned = [], []
        for i, (key, plan) in enumerate(zip(keys, plans, strict=True)):
            example, rollout = int(data["index"][i]), int(key.rsplit("_", 2)[1])
            start = plan.attempts[int(rows.attempt_N[i])][rollout]
            examples.append({**self.contexts.dataset[example], EXAMPLE: example})
            planned.append(
                RowPlan(
                    example,
                    int(rows.group_N[i]),
                    rollout,
                    start if start is not None and start.length else None,
                    whole=bool(rows.whole_N[i]),
                    filler=bool(rows.filler_N[i]),
                )
            )
        return examples, planned

    def _peers(
        self, data: Any, planned: Sequence[RowPlan], rows: CreditedRows
    ) -> dict[int, list[Peer]]:
        """The sampled rows of each group in their order, where a teacher is shown some."""
        groups: dict[int, list[Peer]] = {}
        if not any(t.shown in FROM_GROUPS for t in self.method.teachers):
            return groups
        responses, above = data["responses"].unbind(), self.method.groups.solved_above
        for i in sorted(range(len(planned)), key=lambda i: planned[i].row):
            plan, reward = planned[i], float(rows.reward_N[i])
            if not (plan.filler or plan.whole):
                solved = None if math.isnan(reward) else reward > above
                peer = Peer(plan.group, plan.row, solved, tuple(responses[i].tolist()))
                groups.setdefault(plan.group, []).append(peer)
        return groups


def longest(teacher: Teacher, config: Any, tokenizer: Any) -> int | None:
    """The most tokens of a teacher's prompt; None where any number will do.

    Args:
        teacher: the teacher.
        config: verl's configuration.
        tokenizer: the policy's.

    Raises:
        UserError: its model cannot be used.
    """
    if teacher.weights == "model":
        path = copy_to_local(teacher.model)
        if find_adapter(path) is not None:
            raise UserError(
                f"teacher '{teacher.path}' is an adapter, which verl does not load: merge it into "
                "its base, or use engine: trl"
            )
        check_vocabulary(teacher, tokenizer, load_tokenizer(path))
        model = load_configs(path)[0]
    else:
        model: Any = omega_conf_to_dataclass(config.actor_rollout_ref.model).hf_config
    budget = int(config.data.max_response_length)
    room = room_for(teacher, model, budget)
    if not config.actor_rollout_ref.actor.use_dynamic_bsz:
        return room
    fits = min(int(OmegaConf.select(config, key)) for key in TOKENS) - budget
    return fits if room is None else min(room, fits)
