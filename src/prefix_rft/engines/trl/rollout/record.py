"""The rollouts of a run on disk: every generation of all processes, and what updates made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from prefix_rft.core import Method
from prefix_rft.data.pictures import names
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.rollouts import stream_of
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation
from prefix_rft.engines.trl.rollout.verdicts import Verdicts
from prefix_rft.engines.trl.window import Rows
from prefix_rft.runs.rollouts import ROLLOUTS, Rollout, kept_path, write_generation
from prefix_rft.support.writing import append_text


class RolloutRecord:
    """Writes ``step_N.jsonl`` for each generation, and ``kept_N.jsonl`` beside it.

    Args:
        output_dir: the run's folder, with the files in its folder ``rollouts``.
        method: the method whose rollouts they are.
        spelled: ids of several rows as texts.
        processes: the run's processes; all call every method together, and the main one writes.
    """

    def __init__(
        self,
        output_dir: Any,
        method: Method,
        spelled: Callable[[Sequence[Sequence[int]]], list[str]],
        processes: Processes,
    ) -> None:
        self.folder, self.method = Path(str(output_dir)) / ROLLOUTS, method
        self.spelled, self.processes = spelled, processes

    def write(self, step: int, rows: Rows, generation: Generation) -> None:
        """Write the rollouts of a generation.

        What an earlier run of this step left in ``kept_N.jsonl`` goes.

        Args:
            step: optimizer steps before the first one on these rows.
            rows: the rows with their rewards and advantages.
            generation: the examples, plans and verdicts of the rows.

        Raises:
            UserError: the file cannot be written.
        """
        verdicts = generation.sampled.verdicts
        examples = zip(generation.plans, generation.inputs, strict=True)
        own_lines = [
            self._line(step, rows, i, plan, verdicts, names(example))
            for i, (plan, example) in enumerate(examples)
            if not plan.filler
        ]
        lines = self.processes.gather_list(own_lines)
        if self.processes.main:
            write_generation(self.folder, step, lines)
            kept_path(self.folder, step).unlink(missing_ok=True)

    def _line(
        self,
        step: int,
        rows: Rows,
        i: int,
        plan: RowPlan,
        verdicts: Verdicts,
        images: Sequence[str],
    ) -> dict:
        prompt = rows["prompt_ids"][i][rows["prompt_mask"][i].bool()].tolist()
        completion = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
        reward = rows["row_reward"][i].item()
        stream = stream_of(self.method, plan.hybrid, plan.whole, bool(plan.guided))
        prompt_text, text = self.spelled([prompt, completion])
        # A contrast gives its advantages at the update only.
        has_advantage = self.method.streams[stream].advantage != "sequence"
        return Rollout(
            step=step,
            example=plan.example,
            group=plan.group,
            row=plan.row,
            prompt_ids=prompt,
            completion_ids=completion,
            prefix_length=len(plan.prefix),
            hint_length=len(plan.hint),
            demonstration=plan.whole,
            attempt=plan.attempt,
            prompt=prompt_text,
            text=text,
            reward=None if reward != reward else reward,
            verdicts={name: asdict(said[i]) for name, said in verdicts},
            advantage=rows["row_advantages"][i, stream].item() if has_advantage else None,
            truncated=bool(rows["row_truncated"][i]),
            images=images,
            guided=bool(plan.guided),
        ).line()

    def kept(self, step: int, rows: Rows, keep_BT: Tensor) -> None:
        """Append the hybrid rows of an optimizer step to the file of their generation.

        A line holds the update's step, group and place of the row, and the positions in its
        ``completion_ids`` that keep their advantage: none for a row that was dropped. Nothing is
        written for a method that trains no prefix token.

        Args:
            step: the optimizer step that begins.
            rows: the rows of this step on this process.
            keep_BT: bool, the prefix tokens of these rows that keep their advantage.

        Raises:
            UserError: the file cannot be written.
        """
        if not self.method.trains("prefix"):
            return
        hybrid = rows["prefix_mask"].any(1)
        names = [rows[name][hybrid].tolist() for name in ("row_group", "row_place")]
        kept: list[list[int]] = [[] for _ in names[0]]
        for row, position in keep_BT[hybrid].nonzero().tolist():
            kept[row].append(position)
        lines = self.processes.gather_list(
            [
                {"step": step, "group": g, "row": r, "kept": k}
                for g, r, k in zip(*names, kept, strict=True)
            ]
        )
        if self.processes.main:
            lines.sort(key=lambda line: (line["group"], line["row"]))
            path = kept_path(self.folder, int(rows["row_generation"][0]))
            append_text(path, "".join(json.dumps(line) + "\n" for line in lines))
