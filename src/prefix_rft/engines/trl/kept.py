"""Which prefix tokens of each hybrid row keep their advantage: a file beside the rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prefix_rft.engines.trl.window import Rows
from prefix_rft.runs.rollouts import ROLLOUTS, kept_path
from prefix_rft.support.writing import append_text

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer


def write_kept(trainer: PrefixRFTTrainer, rows: Rows, keep_BT: Tensor) -> None:
    """Append the hybrid rows of this optimizer step, of all processes, to ``kept_N.jsonl``.

    A line holds the update's step, group and place of the row, and the positions in its
    ``completion_ids`` that are kept: none for a row that was dropped. Only the first pass over a
    generation is written. Nothing is written without ``log_rollouts``, nor for a method that trains
    no prefix token.

    Args:
        trainer: for the moment, the method and the processes.
        rows: of the optimizer step that begins, on this process.
        keep_BT: bool, the prefix tokens of these rows that keep their advantage.
    """
    passes = trainer._step // trainer.steps_per_generation
    first = passes % trainer.num_iterations == 0
    if not (first and trainer.args.log_rollouts and trainer.method.trains("prefix")):
        return
    hybrid = rows["prefix_mask"].any(1)
    names = [rows[name][hybrid].tolist() for name in ("row_group", "row_place")]
    kept: list[list[int]] = [[] for _ in names[0]]
    for row, position in keep_BT[hybrid].nonzero().tolist():
        kept[row].append(position)
    step = trainer.state.global_step
    lines = trainer.gather_list(
        [
            {"step": step, "group": g, "row": r, "kept": k}
            for g, r, k in zip(*names, kept, strict=True)
        ]
    )
    if trainer.accelerator.is_main_process:
        lines.sort(key=lambda line: (line["group"], line["row"]))
        folder = Path(str(trainer.args.output_dir)) / ROLLOUTS
        path = kept_path(folder, int(rows["row_generation"][0]))
        append_text(path, "".join(json.dumps(line) + "\n" for line in lines))
