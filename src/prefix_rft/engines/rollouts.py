"""One jsonl file of rollouts for each generation, as both engines write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefix_rft.core import Method
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

WRITTEN = re.compile(r"(step|kept)_([0-9]{6,})\.jsonl")


@dataclass(frozen=True)
class Rollout:
    """What was sampled, from what, and its verdict.

    Attributes:
        step: steps of the trainer done before the first one on its rows.
        example: index in the dataset.
        group: number of its group in the generation.
        row: place in the group.
        prompt_ids: of the prompt.
        completion_ids: of the completion, prefix included.
        prefix_length: in tokens.
        demonstration: a whole demonstration; nothing was sampled.
        attempt: how often its group had been sampled before.
        prompt: as text, special tokens included.
        text: of the completion, likewise; graders see it without the tokens that end it.
        reward: None if it could not be graded.
        verdicts: of each grader, by its name.
        advantage: of the sampled tokens; None where a contrast gives it at the update.
        truncated: it ran into the length limit.
    """

    step: int
    example: int
    group: int
    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    prefix_length: int
    demonstration: bool
    attempt: int
    prompt: str
    text: str
    reward: float | None
    verdicts: Mapping[str, Mapping[str, Any]]
    advantage: float | None
    truncated: bool

    def line(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def stream_of(method: Method, prefix_length: int, whole: bool) -> int:
    """The first stream that acts on what was sampled of a row, or else on the demonstration."""
    sampled = "continuation" if prefix_length else "policy"
    origin = "demonstration" if whole else sampled
    return next((s for s, o in enumerate(method.streams) if origin in o.tokens), 0)


def write_generation(folder: Path, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write ``step_N.jsonl`` in the folder, whole; one that is there already is replaced.

    Raises:
        UserError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(folder / f"step_{step:06d}.jsonl", text)


def cut_rollouts(folder: Path, step: int, look: bool = False) -> None:
    """Take away what a run has written of the optimizer steps from ``step`` on.

    Rollouts made before ``step`` stay, but later updates on them leave ``kept_N.jsonl``. Nothing is
    changed before all files have been read.

    Args:
        folder: of the rollouts.
        step: from which the run goes on.
        look: only read.

    Raises:
        UserError: a file is damaged.
    """
    gone, shorter = [], []
    for path in sorted(folder.glob("*.jsonl")):
        if not (name := WRITTEN.fullmatch(path.name)):
            continue
        if int(name[2]) >= step:
            gone.append(path)
        elif name[1] == "kept":
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run may have left half a line, of an update behind its last checkpoint.
            whole = [line for line in lines if line.endswith("\n")]
            try:
                before = [line for line in whole if json.loads(line)["step"] < step]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
            if len(before) < len(lines):
                shorter.append((path, "".join(before)))
    if look:
        return
    for path in gone:
        path.unlink()
    for path, text in shorter:
        write_text(path, text)
