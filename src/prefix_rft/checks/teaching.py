"""Which rows a teacher does not teach, and why, as far as that is known before sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from prefix_rft.checks.findings import Findings
from prefix_rft.core.teacher import FROM_GROUPS, Teacher
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.data.render import Renderer
from prefix_rft.engines.contexts import LOOKED_AT, Contexts
from prefix_rft.engines.models import load_configs
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.teachers import room_for
from prefix_rft.support.console import say

TAUGHT, TOO_LONG, OF_ANOTHER = "taught", "its prompt is too long", "it is another teacher's"


def why_untaught(teacher: Teacher, example: Any, too_long: bool) -> str:
    """Why a teacher has no prompt for a row, in words.

    Args:
        teacher: the teacher.
        example: the row's example.
        too_long: its prompt is longer than there is room for.
    """
    if too_long:
        return TOO_LONG
    if any(example.get(column) != value for column, value in teacher.only.items()):
        return OF_ANOTHER
    if teacher.shown == "peer":
        return "no other row of its group is solved"
    if teacher.shown == "wrong":
        return "no other row of its group is unsolved"
    shows_column = teacher.context == "column" and teacher.shown in ("column", "unrelated")
    what = f"column '{teacher.column}'" if shows_column else "a usable demonstration"
    if teacher.shown == "unrelated":
        return f"no other row has {'anything in ' * shows_column}{what}"
    return f"it has nothing in {what}" if shows_column else "it has no usable demonstration"


def limits_of(setup: Setup, positions: int | None) -> dict[str, int | None]:
    """The most tokens of each teacher's prompts, by name; None is any number.

    Args:
        setup: the resolved recipe.
        positions: those of the policy's model; None where there is no end.

    Raises:
        UserError: the model of a teacher is not there.
    """
    own = SimpleNamespace(max_position_embeddings=positions)
    budget = setup.args.max_completion_length
    limits = {}
    for t in setup.method.teachers:
        config = load_configs(t.model)[0] if t.weights == "model" else own
        limits[t.name] = room_for(t, config, budget)
    return limits


def start_of(setup: Setup, step: int = 0) -> RunPoint:
    """The point of the run at which teachers' prompts are looked at.

    Args:
        setup: the resolved recipe.
        step: the optimizer step.
    """
    args = setup.args
    return RunPoint(setup.plan.generations, args.seed, step, step + 1, args.max_completion_length)


class Taught:
    """Counts the rows that each teacher teaches, and names the others.

    Attributes:
        counts: for each teacher's name, the number of rows by what becomes of them.

    Args:
        setup: the resolved recipe.
        render: how prompts become ids.
        positions: those of the policy's model; None where there is no end.
        findings: where rows that are not taught are noted.
    """

    def __init__(
        self, setup: Setup, render: Renderer, positions: int | None, findings: Findings
    ) -> None:
        self.setup, self.render, self.findings = setup, render, findings
        self.limits = limits_of(setup, positions)
        self.counts = {t.name: Counter[str]() for t in setup.method.teachers}
        self.first: list[dict[str, Any]] = []

    def at(self, rows: Sequence[tuple[str, dict[str, Any], list[list[int]]]]) -> None:
        """Look at some rows.

        Args:
            rows: the label of each row, what the library knows of it, and its demonstrations' ids.
        """
        examples = [{**values, IDS: ids, EXAMPLE: i} for i, (_, values, ids) in enumerate(rows)]
        # Another example is drawn from these, and from the first ones.
        contexts = Contexts(self.render, [*examples, *self.first], self.limits)
        self.first = self.first or examples[:LOOKED_AT]
        moment = start_of(self.setup)
        for (label, _, _), example in zip(rows, examples, strict=True):
            plan, whys = RowPlan(example[EXAMPLE], 0, 0), []
            for teacher in self.setup.method.teachers:
                if teacher.shown in FROM_GROUPS:
                    continue
                ids, long = contexts.prompt(teacher, example, plan, moment, ())
                why = TAUGHT if ids is not None else why_untaught(teacher, example, long)
                self.counts[teacher.name][why] += 1
                if why not in (TAUGHT, OF_ANOTHER):
                    self._note(teacher, why, label)
                whys.append(why)
            if whys and set(whys) == {OF_ANOTHER}:
                self.findings.add("no teacher is for the row", row=label, serious=False)

    def _note(self, teacher: Teacher, why: str, label: str) -> None:
        """A row that a teacher does not teach, although it is one of its rows."""
        fix, limit = "", self.limits[teacher.name]
        if why == TOO_LONG:
            why += f" for the {limit} tokens that there is room for"
            fix = "shorten the context (teacher: {too_long: cut}), or lower max_completion_length"
        self.findings.add(
            f"teacher '{teacher.name}' does not teach the row: {why}", fix, label, serious=False
        )

    def end(self) -> None:
        """Findings about all rows together."""
        for name, counts in self.counts.items():
            if counts and not counts[TAUGHT]:
                self.findings.add(
                    f"teacher '{name}' teaches none of the {counts.total()} rows",
                    "name its column or the demonstrations' (columns: {demonstration: NAME}), or "
                    "make room for its prompt",
                )


def show_taught(console: Console, setup: Setup, taught: Taught | None) -> None:
    """For each teacher, how many rows it teaches and why it does not teach the others.

    Args:
        console: the console to print on.
        setup: the resolved recipe.
        taught: what was counted; None where nothing was.
    """
    for t in setup.method.teachers if taught is not None else ():
        counts = taught.counts[t.name] if taught is not None else Counter[str]()
        text = f"teacher '{t.name}' ({t.shown}, {t.weights}): "
        if t.shown in FROM_GROUPS:
            text += "whom it teaches is known once their groups are sampled"
        else:
            text += f"{counts[TAUGHT]} of {counts.total()} rows taught"
            text += "".join(f"; {n} not: {why}" for why, n in counts.items() if why != TAUGHT)
        say(console, text)
