"""Whether prefixes give the answer away: they are graded alone."""

from __future__ import annotations

from typing import Any

import torch

from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation
from prefix_rft.rewards import grade_texts
from prefix_rft.rewards.verdict import CORRECT


def prefix_leak(
    grader: Any, renderer: Renderer, generation: Generation, processes: Processes
) -> dict[str, float]:
    """The share of hybrid rows whose prefix alone is correct; empty where there is no such row.

    Args:
        grader: a reward function that grades text.
        renderer: how ids become texts.
        generation: the rows.
        processes: the run's processes.
    """
    pairs = zip(generation.inputs, generation.plans, strict=True)
    hybrid = [(row, plan) for row, plan in pairs if plan.hybrid]
    leaks = 0
    if hybrid:
        ids = [list(plan.prefix) for _, plan in hybrid]
        texts = renderer.completions(ids)
        verdicts = grade_texts(grader, [row for row, _ in hybrid], texts, ids)
        leaks = sum(v.status == CORRECT for v in verdicts)
    counts = torch.tensor([leaks, len(hybrid)], device=processes.device)
    leaks, rows = processes.sum(counts).tolist()
    return {"prefix/leak": leaks / rows} if rows else {}
