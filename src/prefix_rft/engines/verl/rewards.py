"""verl's reward manager on our graders: the same verdicts as in the TRL engine."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from prefix_rft.engines.verl.dataset import COLUMNS, renderer_of
from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.engines.verl.rollouts import VERDICTS
from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.completions import grade_texts
from prefix_rft.rewards.verdict import CORRECT, Verdict

UNGRADED = "ungraded"


class Graders(RewardManagerBase):
    """Grades one rollout at a time; verl runs several managers side by side."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        block = MethodConfig.read(OmegaConf.to_container(config[KEY], resolve=True))  # pyright: ignore[reportArgumentType]
        cores = max(1, (os.cpu_count() or 1) // int(config.reward.num_workers))
        entries = [{"workers": cores, **_plain(e)} for e in _several(block.reward)]
        self.rewards, self.weights = load_rewards(entries, Path(block.folder))
        self.renderer = renderer_of(tokenizer, config.data)
        self.one_at_a_time = asyncio.Lock()

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last row of ``data``, and what validation shows of it."""
        row = data[len(data) - 1]
        length = row.batch["responses"].shape[-1]
        ids = row.batch["responses"][: int(row.batch["attention_mask"][-length:].sum())].tolist()
        columns = json.loads(row.non_tensor_batch[COLUMNS])
        async with self.one_at_a_time:
            verdicts = await asyncio.to_thread(self.verdicts, ids, columns)
        reward = combined(verdicts, self.weights)
        missing = math.isnan(reward)
        info: dict[str, Any] = {UNGRADED: float(missing), "score": 0.0 if missing else reward}
        named = {name_of(f): v for f, v in zip(self.rewards, verdicts, strict=True)}
        info |= {f"{name}/correct": float(v.status == CORRECT) for name, v in named.items()}
        info[VERDICTS] = json.dumps({name: asdict(v) for name, v in named.items()})
        return {"reward_score": info["score"], "reward_extra_info": info}

    def verdicts(self, ids: Sequence[int], columns: dict[str, Any]) -> list[Verdict]:
        """Of each grader, on a completion."""
        texts = self.renderer.completions([ids])
        return [grade_texts(f, [columns], texts, [ids])[0] for f in self.rewards]


def combined(verdicts: Sequence[Verdict], weights: Sequence[float]) -> float:
    """The weighted sum of the rewards; NaN where a grader could not judge, or none applies.

    It is 0 where there are no graders, whose rewards then nobody reads.
    """
    if not verdicts:
        return 0.0
    values = [v.reward for v in verdicts]
    if any(v.excluded for v in verdicts) or all(x is None for x in values):
        return math.nan
    return sum(w * x for w, x in zip(weights, values, strict=True) if x is not None)


def _several(spec: Any) -> list[Any]:
    return list(spec) if isinstance(spec, (list, tuple)) else [spec]


def _plain(entry: Any) -> dict[str, Any]:
    return {"name": entry} if isinstance(entry, str) else dict(entry)
