"""What stands in a teacher's prompt: the policy's prompt, and what the policy does not see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefix_rft.core import Method
from prefix_rft.core.hint import in_last_text
from prefix_rft.core.prefix import generator
from prefix_rft.core.teacher import FROM_GROUPS, Teacher, without_thinking
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.data.render import Renderer
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.support.errors import UserError

LOOKED_AT = 64
"""Examples that are looked at: for one that has what a control wants, and before the first step."""


class Peer(NamedTuple):
    """A row of some group.

    Attributes:
        group: its group's id.
        row: its place in the group.
        solved: whether it is solved; None where it has no reward.
        ids: its completion.
    """

    group: int
    row: int
    solved: bool | None
    ids: tuple[int, ...]


class Contexts:
    """Writes the prompts of teachers.

    Args:
        renderer: how texts become ids, and back.
        dataset: the rows, with demonstrations as token ids.
        limits: the most tokens of a teacher's prompts, by its name; None is any number.
    """

    def __init__(self, renderer: Renderer, dataset: Any, limits: Mapping[str, int | None]) -> None:
        self.renderer, self.dataset, self.limits = renderer, dataset, limits

    def refuse_untaught(self, method: Method, moment: RunPoint) -> None:
        """Look whether each teacher teaches some row, as far as that is known before sampling.

        Args:
            method: the method with its teachers.
            moment: the point of the run.

        Raises:
            UserError: none of the first rows has a context, or a prompt that is short enough.
        """
        rows = [self.dataset[i] for i in range(min(LOOKED_AT, len(self.dataset)))]
        for teacher in method.teachers:
            if teacher.shown in FROM_GROUPS or teacher.only:
                continue
            plans = [RowPlan(i, 0, 0) for i in range(len(rows))]
            both = zip(rows, plans, strict=True)
            found = [self.prompt(teacher, row, plan, moment, ()) for row, plan in both]
            if all(ids is None for ids, _ in found):
                long = sum(long for _, long in found)
                raise UserError(
                    f"teacher '{teacher.name}' would teach none of the first {len(rows)} rows: "
                    f"{long} of its prompts are too long, the others have nothing to show "
                    f"({teacher.shown})"
                )

    def prompt(
        self,
        teacher: Teacher,
        example: Mapping[str, Any],
        plan: RowPlan,
        moment: RunPoint,
        peers: Sequence[Peer],
    ) -> tuple[list[int] | None, bool]:
        """The ids of a teacher's prompt for a row, None where it does not teach the row; and
        whether that is because the prompt is too long.

        Args:
            teacher: the teacher.
            example: the row's example.
            plan: the row.
            moment: the point of the run.
            peers: the rows of the row's group, in their order.
        """
        if any(example.get(column) != value for column, value in teacher.only.items()):
            return None, False
        text = self._context(teacher, example, plan, moment, peers)
        if text is None:
            return None, False
        if teacher.strip_thinking:
            text = without_thinking(text)
        limit, asked = self.limits[teacher.name], example["prompt"]
        ids = self._written(teacher, asked, text)
        while limit is not None and len(ids) > limit:
            if teacher.too_long != "cut" or not text:
                return None, True
            tokens: Any = self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
            text = self.renderer.spelled([tokens[: -(len(ids) - limit)]])[0] if tokens else ""
            ids = self._written(teacher, asked, text)
        return ids, False

    def _written(self, teacher: Teacher, asked: Any, text: str) -> list[int]:
        if teacher.shown == "none":
            return self.renderer.prompt(asked)
        return self.renderer.prompt(in_last_text(asked, lambda p: teacher.write(p, text)))

    def _context(
        self,
        teacher: Teacher,
        example: Mapping[str, Any],
        plan: RowPlan,
        moment: RunPoint,
        peers: Sequence[Peer],
    ) -> str | None:
        """The text of the context; None where there is none."""
        shown = teacher.shown
        if shown == "none":
            return ""
        if shown in FROM_GROUPS:
            others = [p for p in peers if p.row != plan.row and p.solved is (shown == "peer")]
            return self.renderer.completions([others[0].ids])[0] if others else None
        if shown == "unrelated":
            return self._unrelated(teacher, example, plan, moment)
        if shown == "column":
            value = example.get(teacher.column or "")
            return None if value is None else str(value)
        return self._demonstration(example, plan, teacher.ratio if shown == "prefix" else 1.0)

    def _demonstration(self, example: Mapping[str, Any], plan: RowPlan, ratio: float) -> str | None:
        """The text of a demonstration of the example: that which the row starts from, else one for
        each row in turn."""
        demonstrations = example[IDS]
        if not demonstrations:
            return None
        which = plan.row if plan.start is None else plan.start.index
        ids = demonstrations[which % len(demonstrations)]
        return self.renderer.completions([ids[: math.ceil(ratio * len(ids))]])[0]

    def _unrelated(
        self, teacher: Teacher, example: Mapping[str, Any], plan: RowPlan, moment: RunPoint
    ) -> str | None:
        """What another example would have had; its question too, where that is a demonstration."""
        rows, own = len(self.dataset), int(example[EXAMPLE])
        if rows < 2:
            return None
        rng = generator(moment.seed, moment.step, own, -3)
        first = rng.randrange(1, rows)
        for i in range(min(LOOKED_AT, rows - 1)):
            place = (own + 1 + (first - 1 + i) % (rows - 1)) % rows
            other = self.dataset[place]
            if teacher.context == "column":
                value = other.get(teacher.column)
                if value is not None:
                    return str(value)
            elif (text := self._demonstration(other, plan, 1.0)) is not None:
                return f"{last_text(other['prompt'])}\n{text}"
        return None


def last_text(prompt: Any) -> str:
    """The text of a prompt, of its last message in a conversation."""
    found: list[str] = []
    in_last_text(prompt, lambda text: found.append(text) or text)
    return found[0]
