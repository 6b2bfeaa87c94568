"""Write the rollouts of a generation of all processes; log where they started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.rollouts import stream_of
from prefix_rft.engines.trl.window import Rows
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import Verdict
from prefix_rft.runs.rollouts import ROLLOUTS, Rollout, kept_path, write_generation

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


def write_rollouts(
    trainer: PrefixRFTTrainer,
    rows: Rows,
    plans: list[RowPlan],
    verdicts: Sequence[Sequence[Verdict]],
) -> None:
    """Write the rollouts of all processes to ``output_dir/rollouts/step_N.jsonl``.

    What an earlier run of this step left in ``kept_N.jsonl`` goes.
    """
    lines = []
    step, streams = trainer.state.global_step, trainer.method.streams
    spelled = trainer.renderer.spelled
    for i, plan in enumerate(plans):
        if plan.filler:
            continue
        prompt = rows["prompt_ids"][i][rows["prompt_mask"][i].bool()].tolist()
        completion = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
        reward = rows["row_reward"][i].item()
        stream = stream_of(trainer.method, len(plan.prefix), plan.whole)
        prompt_text, text = spelled([prompt, completion])
        known = streams[stream].advantage != "sequence"  # which is known at the update only
        rollout = Rollout(
            step=step,
            example=plan.example,
            group=plan.group,
            row=plan.row,
            prompt_ids=prompt,
            completion_ids=completion,
            prefix_length=len(plan.prefix),
            demonstration=plan.whole,
            attempt=plan.attempt,
            prompt=prompt_text,
            text=text,
            reward=None if reward != reward else reward,
            verdicts={
                name_of(g): asdict(v[i]) for g, v in zip(trainer.graders, verdicts, strict=True)
            },
            advantage=rows["row_advantages"][i, stream].item() if known else None,
            truncated=bool(rows["row_truncated"][i]),
        )
        lines.append(rollout.line())
    lines = trainer.gather_list(lines)
    if trainer.accelerator.is_main_process:
        folder = Path(str(trainer.args.output_dir)) / ROLLOUTS
        write_generation(folder, step, lines)
        kept_path(folder, step).unlink(missing_ok=True)


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
