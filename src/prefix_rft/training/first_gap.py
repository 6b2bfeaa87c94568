"""What a teacher's prompt is worth before training: solve rates behind it, and without it.

The gain of distillation is about linear in the first gap between teacher and policy (arXiv
2605.30070, abstract): where there is none, there is nothing to learn from the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from prefix_rft.checks.teaching import start_of, why_untaught
from prefix_rft.core.teacher import FROM_GROUPS, Teacher
from prefix_rft.engines.contexts import Peer
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.setup import Setup
from prefix_rft.evaluation.estimates import Estimate, over_graded
from prefix_rft.evaluation.expected import success
from prefix_rft.evaluation.samples import Request, Sample
from prefix_rft.training.teacher_start import Answer, StartModel

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TeacherRow:
    """A row of a group: the policy's answer, and the teacher's prompt for it.

    Attributes:
        example: the index of its example.
        asked: ids of the policy's prompt.
        shown: ids of the teacher's; None where the row is not taught.
        why: why it is not taught; empty where it is.
        own: the policy's answer; None where nothing was sampled.
        behind: the answer behind the teacher's prompt; None where nothing was sampled.
        again: another answer of the policy, where its first ones decide whom the teacher teaches.
    """

    example: int
    asked: list[int]
    shown: list[int] | None
    why: str
    own: Answer | None
    behind: Answer | None = None
    again: Answer | None = None


@dataclass(frozen=True)
class FirstGap:
    """What a teacher is shown, and what that is worth.

    Attributes:
        teacher: the teacher.
        rows: a row for each sample of each example, those of an example beside one another.
        same: its weights and its prompts are the policy's, so that nothing can differ.
        policy: the share of the policy's answers that are right, on the examples of ``gap``.
        behind: the share of those behind the teacher's prompt.
        gap: the second less the first, paired by example; None where nothing was sampled.
    """

    teacher: Teacher
    rows: Sequence[TeacherRow]
    same: bool = False
    policy: Estimate | None = None
    behind: Estimate | None = None
    gap: Estimate | None = None


def first_gaps(
    setup: Setup, start: StartModel, request: Request, sampled: int, step: int, progress: Progress
) -> list[FirstGap]:
    """For each teacher what it is shown, and what that is worth on the first examples.

    Args:
        setup: the resolved recipe, whose method has teachers.
        start: the start model and its rows.
        request: how to sample; ``samples`` are the rows of a group.
        sampled: the number of examples, from the first one, that are sampled.
        step: the optimizer step, which decides which other example is an unrelated one.
        progress: called with a job's name, the rows done, and those to do.
    """
    examples = [dict(start.examples[i]) for i in range(len(start.examples))]
    asked = [start.render.prompt(e["prompt"]) for e in examples]
    drawn = [(i, row, asked[i]) for i in range(sampled) for row in range(request.samples)]
    own: dict[tuple[int, int], Answer] = {}
    if drawn:
        tick = lambda done: progress("without the teacher's prompt", done, len(drawn))  # noqa: E731
        answers = start.answers(start.model, drawn, request, tick)
        own = {(i, row): answer for (i, row, _), answer in zip(drawn, answers, strict=True)}
    peers = _peers(own, setup.method.groups.solved_above)
    moment = start_of(setup, step)
    found = []
    for teacher in setup.method.teachers:
        rows = []
        for i, example in enumerate(examples):
            for row in range(request.samples):
                plan, group = RowPlan(i, i, row), peers.get(i, ())
                ids, long = start.contexts.prompt(teacher, example, plan, moment, group)
                why = "" if ids is not None else why_untaught(teacher, example, long)
                if teacher.shown in FROM_GROUPS and i >= sampled:
                    why = "its group was not sampled"
                rows.append(TeacherRow(i, asked[i], ids, why, own.get((i, row))))
        found.append(_gap(start, teacher, rows, request, progress))
    return found


def _peers(own: Mapping[tuple[int, int], Answer], solved_above: float) -> dict[int, list[Peer]]:
    """The rows of each group, as training has them."""
    groups: dict[int, list[Peer]] = {}
    for (i, row), (ids, sample) in sorted(own.items(), key=lambda item: item[0]):
        solved = None if sample.reward is None else sample.reward > solved_above
        groups.setdefault(i, []).append(Peer(i, row, solved, tuple(ids)))
    return groups


def _gap(
    start: StartModel,
    teacher: Teacher,
    rows: list[TeacherRow],
    request: Request,
    progress: Progress,
) -> FirstGap:
    """Sample behind a teacher's prompts, where the policy was sampled.

    Groups with a solved row are chosen by their rows, which are then solved too often: of a teacher
    that is shown siblings the policy answers their examples once more.
    """
    model, weights = start.voice(teacher)
    taught = [n for n, row in enumerate(rows) if row.shown is not None and row.own is not None]
    same = model is start.model and isinstance(weights, nullcontext)
    same = same and bool(taught) and all(rows[n].shown == rows[n].asked for n in taught)
    if same or not taught:
        return FirstGap(teacher, rows, same)
    k = request.samples
    first = k if teacher.shown in FROM_GROUPS else 0

    def answers(name: str, which: Sequence[int], asker: Any, teachers: bool) -> list[Answer]:
        prompts = [
            (rows[n].example, first + n % k, (teachers and rows[n].shown) or rows[n].asked)
            for n in which
        ]
        return start.answers(asker, prompts, request, lambda at: progress(name, at, len(prompts)))

    if first:
        examples = {rows[n].example for n in taught}
        which = [n for n, row in enumerate(rows) if row.example in examples]
        found = answers("without the teacher's prompt again", which, start.model, False)
        for n, answer in zip(which, found, strict=True):
            rows[n] = replace(rows[n], again=answer)
    with weights:
        found = answers(f"behind the prompt of '{teacher.name}'", taught, model, True)
    for n, answer in zip(taught, found, strict=True):
        rows[n] = replace(rows[n], behind=answer)
    return FirstGap(teacher, rows, False, *estimates(rows, k))


def estimates(
    rows: Sequence[TeacherRow], samples: int
) -> tuple[Estimate, Estimate, Estimate] | tuple[None, None, None]:
    """Solve rates without and behind the teacher's prompt, and the second less the first.

    An example counts where some row of it is taught, with all rows of the policy.

    Args:
        rows: the rows, those of an example beside one another.
        samples: the rows of an example.

    Returns:
        None where no example was graded in both.
    """
    counts = []
    for at in range(0, len(rows), samples):
        group = rows[at : at + samples]
        pair = [_graded([x.again or x.own for x in group]), _graded([x.behind for x in group])]
        if all(pair):
            counts.append([(sum(s.correct for s in side), len(side)) for side in pair])
    if not counts:
        return None, None, None
    policy, taught = (success(*zip(*(c[side] for c in counts), strict=True)) for side in (0, 1))
    gaps = [b / m - a / n for (a, n), (b, m) in counts]
    return policy, taught, over_graded([gaps])


def _graded(answers: Sequence[Answer | None]) -> list[Sample]:
    """Those of some answers that could be graded."""
    return [x[1] for x in answers if x is not None and x[1].reward is not None]
