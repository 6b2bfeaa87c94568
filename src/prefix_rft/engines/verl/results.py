"""What a run on verl has left: its metrics as other runs have them, and how to have its model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from prefix_rft.runs.metrics import append_metrics

NEWEST = "latest_checkpointed_iteration.txt"
"""In the folder of verl's checkpoints, once there is one."""

RENAMED = {
    "actor/loss": "loss",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
}
"""Metrics of verl's, and what the TRL engine calls them."""


def take_metrics(folder: Path) -> None:
    """Write ``metrics.jsonl`` as other runs have it, from verl's own files, one of each part.

    A part that goes on from a checkpoint does the steps behind it anew.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("verl-*.jsonl")):
        text = path.read_text(encoding="utf-8").splitlines(keepends=True)
        entries = [json.loads(x) for x in text if x.endswith("\n")]  # the last may be cut off
        trained = [int(x["step"]) for x in entries if "actor/loss" in x["data"]]
        for step in [s for s in lines if trained and s >= min(trained)]:
            del lines[step]
        for line in entries:
            lines.setdefault(int(line["step"]), {}).update(line["data"])
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    for step in sorted(lines):
        append_metrics(folder, step, {RENAMED.get(k, k): v for k, v in lines[step].items()})


MERGED = {"fsdp": "fsdp", "fsdp2": "fsdp", "megatron": "megatron"}
"""verl's strategies, and the backend of its merger for each."""


def to_merge(folder: Path, saved: Path, strategy: str) -> str:
    """How the trained model comes out of the newest checkpoint, in words.

    Args:
        folder: the run's folder.
        saved: the folder in which its checkpoints are.
        strategy: verl's, of the actor.
    """
    newest = saved / NEWEST
    if not newest.is_file():
        return f"there is no checkpoint in {saved}, and so no trained model"
    part = saved / f"global_step_{newest.read_text(encoding='utf-8').strip()}" / "actor"
    if strategy not in MERGED:
        return f"the trained model is in parts in {part}, in the form of verl's '{strategy}'"
    return (
        f"the trained model is in parts; to have it whole, in bf16, in {folder}/model:\n"
        f"python -m verl.model_merger merge --backend {MERGED[strategy]} "
        f"--local_dir {shlex.quote(str(part))} --target_dir {shlex.quote(str(folder / 'model'))}"
    )
