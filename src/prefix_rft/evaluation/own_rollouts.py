"""What a run's policy has solved, as demonstrations: rejection sampling from rollouts on disk.

On the rollouts of an RL-trained model SFT forgets less than on other texts (arXiv 2506.23508, which
we know second-hand). Nothing that began with a demonstration is own: no hybrid row, and no hint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.data import load_rows
from prefix_rft.data.pictures import asked
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.collect import line_of, plain_rows, policy_renderer
from prefix_rft.rewards.verdict import CORRECT
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import POLICY, Rollout
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text


@dataclass(frozen=True)
class Solved:
    """What was found.

    Attributes:
        rollouts: on-policy rollouts that were looked at.
        right: those that every grader calls correct and that came to their end.
        rows: rows that have one, which were written.
        answers: different answers that were written.
    """

    rollouts: int
    right: int
    rows: int
    answers: int


def write_solved(run: Path, recipe: str, output: Path, keep: int, from_step: int) -> Solved:
    """Write the rows of a recipe that a run's own rollouts solved, with these as demonstrations.

    Of each row the last different ones, those of the most trained policy first.

    Args:
        run: the run's folder.
        recipe: the recipe that it is of, for its rows.
        output: the file to write, ``.jsonl``.
        keep: the most answers of a row.
        from_step: the first step whose rollouts count.

    Raises:
        UserError: nothing was solved, or a rollout is of none of the recipe's rows, or of several.
    """
    folder = RunFolder(run)
    setup = configure(recipe)
    setup.close()
    own = setup.recipe
    rows = load_rows(own.train_data, folder=own.folder, reading=own.reading(setup.args.seed))
    date = (folder.recipe().get("trainer") or {}).get("chat_template_date")
    render = policy_renderer(setup, rows[0]["prompt"], date)
    places: dict[tuple[int, ...], list[int]] = {}
    row: Any
    for i, row in enumerate(rows):
        places.setdefault(tuple(render.prompt(asked(row))), []).append(i)
    looked_at = right = 0
    found: dict[int, dict[str, None]] = {}
    for step in reversed([s for s in folder.generations() if s >= from_step]):
        for rollout in folder.rollouts(step):
            looked_at += rollout.origin == POLICY
            if not is_right(rollout):
                continue
            right += 1
            place = _place(rollout, places)
            text = render.completions([rollout.completion_ids])[0]
            texts = found.setdefault(place, {})
            if len(texts) < keep:
                texts[text] = None
    if not found:
        raise UserError(
            f"none of {looked_at} on-policy rollouts of '{run}' from step {from_step} on is right: "
            "there is nothing to imitate"
        )
    listed = list(plain_rows(rows))
    lines = [
        line_of({**listed[place], "demonstration": list(texts)})
        for place, texts in sorted(found.items())
    ]
    write_text(output, "".join(lines))
    return Solved(looked_at, right, len(found), sum(map(len, found.values())))


def is_right(rollout: Rollout) -> bool:
    """Whether a rollout is the policy's own, came to its end, and all graders call it correct."""
    said = [verdict["status"] for verdict in rollout.verdicts.values()]
    whole = rollout.origin == POLICY and not rollout.truncated
    return whole and bool(said) and all(status == CORRECT for status in said)


def _place(rollout: Rollout, places: Mapping[tuple[int, ...], Sequence[int]]) -> int:
    """The row that a rollout is of: that with its prompt, and where several have it, its own."""
    same = places.get(tuple(rollout.prompt_ids), ())
    if len(same) == 1:
        return same[0]
    if rollout.example is not None and rollout.example in same:
        return rollout.example
    raise UserError(
        f"step {rollout.step}: {len(same)} rows of the recipe have the prompt of a rollout, "
        f"{rollout.prompt[:60]!r}: give the recipe that the run is of"
    )
