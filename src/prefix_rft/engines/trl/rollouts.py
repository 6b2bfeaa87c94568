"""One jsonl file of rollouts for each generation: what was sampled, from what, and its verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.kept import kept_path
from prefix_rft.engines.trl.window import Rows
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import Verdict
from prefix_rft.writing import write_text

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


def write_rollouts(
    trainer: PrefixRFTTrainer,
    rows: Rows,
    plans: list[RowPlan],
    verdicts: Sequence[Sequence[Verdict]],
) -> None:
    """Write the rollouts of all processes to ``output_dir/rollouts/step_N.jsonl``.

    A line holds ids, the length of the prefix, whether the row is a whole demonstration, how often
    its group was sampled before, text, reward (null: could not be graded), each grader's verdict,
    advantage of the sampled tokens (null: a contrast gives it at the update), and whether the row
    ran into the length limit. What an earlier run of this step left in ``kept_N.jsonl`` goes.
    """
    lines = []
    streams = trainer.method.streams
    decode = trainer.processing_class.decode
    for i, plan in enumerate(plans):
        if plan.filler:
            continue
        prompt = rows["prompt_ids"][i][rows["prompt_mask"][i].bool()].tolist()
        completion = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
        reward = rows["row_reward"][i].item()
        sampled = "continuation" if plan.prefix else "policy"
        origin = "demonstration" if plan.whole else sampled
        stream = next((s for s, o in enumerate(streams) if origin in o.tokens), 0)
        lines.append(
            {
                "step": trainer.state.global_step,
                "example": plan.example,
                "group": plan.group,
                "row": plan.row,
                "prompt_ids": prompt,
                "completion_ids": completion,
                "prefix_length": len(plan.prefix),
                "demonstration": plan.whole,
                "attempt": plan.attempt,
                "prompt": decode(prompt),
                "text": decode(completion),
                "reward": None if reward != reward else reward,
                "verdicts": {
                    name_of(g): asdict(v[i]) for g, v in zip(trainer.graders, verdicts, strict=True)
                },
                "advantage": None
                if streams[stream].advantage == "sequence"  # known at the update only
                else rows["row_advantages"][i, stream].item(),
                "truncated": bool(rows["row_truncated"][i]),
            }
        )
    lines = trainer.gather_list(lines)
    if trainer.accelerator.is_main_process:
        folder = Path(str(trainer.args.output_dir)) / "rollouts"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{trainer.state.global_step:06d}.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(path, text)
        kept_path(trainer.args.output_dir, trainer.state.global_step).unlink(missing_ok=True)


def log_starts(trainer: PrefixRFTTrainer, lengths: Tensor, demo_N: Tensor) -> None:
    """Log how many rows start from a prefix, how long it is, and the bounds of its law."""
    method, metrics = trainer.method, trainer.metrics
    if not method.branches:
        return
    if method.prefix is not None:
        low, high = method.prefix.interval(trainer.state.global_step, trainer.state.max_steps)
        metrics["prefix/low"].append(low)
        metrics["prefix/high"].append(high)
    metrics["prefix/row_share"].append(len(lengths) / len(demo_N))
    if len(lengths):
        metrics["prefix/length"].append(lengths.float().mean().item())
    if method.trains("demonstration"):
        metrics["demonstration/row_share"].append(demo_N.float().mean().item())
