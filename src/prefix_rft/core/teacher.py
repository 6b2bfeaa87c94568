"""What a teacher is: whose weights, behind which prompt, on which rows.

A teacher scores the policy's own completions, token by token, behind a prompt that may hold more
than the policy's: a demonstration, a solved sibling, the answer. What it says is detached; streams
read it in a weight (``core.weights``). The family: SDFT arXiv 2601.19897, OPSD 2601.18734, SDPO
2601.20802, RLSD 2604.03128, GATS 2609.37898, SDAR 2605.15155.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.support.errors import UserError, choose

CONTEXTS = ("demonstration", "prefix", "peer", "wrong", "column", "unrelated", "none")
"""What stands in a teacher's prompt: a demonstration of the row's example, or its first part; the
first solved, or first unsolved, other row of the group; a column of the row; the question and the
demonstration of another example; nothing more than the policy sees."""

FROM_GROUPS = ("peer", "wrong")
"""Contexts that are known once the row's group is sampled."""

KINDS = ("live", "frozen", "ema", "snapshot", "adapter_off", "model")
"""Whose weights: the policy's at the start of the optimizer step; of the start of the run; their
moving average; theirs of some steps ago; the model without its adapter; another model's."""
MOVING = ("live", "ema", "snapshot")
"""Kinds that score the rows anew in each optimizer step."""
KEPT = ("frozen", "ema", "snapshot")
"""Kinds whose weights are kept beside the policy's."""

CONTROLS = ("unrelated", "none", "wrong")
TOO_LONG = ("untaught", "cut")

DEMONSTRATION = (
    "{prompt}\n\nThis is an example for a response to the question:\n{context}\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)
"""SDFT's sentence (arXiv 2601.19897 and the authors' code)."""
ANSWER = "{prompt}\n\nThe answer is known to be: {context}\n"
"""Ours, for a column: RLSD's teacher is told the final answer alone."""
SOLUTION = (
    "{prompt}\n\nA correct solution is known:\n{context}\n\n"
    "Solve the problem in your own words, without repeating it.\n"
)
"""Ours, in the sense of OPSD's (arXiv 2601.18734): its later release asks not to copy."""
SOLVED = "{prompt}\nCorrect solution:\n\n{context}\n\n\nCorrectly solve the original question.\n"
"""SDPO's, without feedback (arXiv 2601.20802 and the authors' sdpo.yaml)."""


@dataclass(frozen=True)
class Teacher:
    """Who scores the completions of the policy, and behind which prompt.

    Attributes:
        name: the name that streams and metrics have for it.
        context: one of ``CONTEXTS``. A row for which there is none is not taught.
        weights: one of ``KINDS``.
        template: what the last message of its prompt says: ``{prompt}``, which is the policy's, and
            ``{context}``.
        column: the column of context ``column``.
        ratio: the share of the demonstration's tokens of context ``prefix``.
        rate: the policy's share in a move of ``ema``: ``phi <- (1 - rate) phi + rate theta``.
        every: optimizer steps between two moves of ``ema`` or ``snapshot``.
        path: the folder or Hub name of ``model``.
        only: it teaches the rows whose columns have these values, where there are several teachers.
        strip_thinking: leave out of a context what stands between think tags.
        max_length: tokens of its prompt, at most; None is what the model has room for.
        too_long: a row whose prompt is longer is ``untaught``, or its context ``cut`` at its end.
        control: what stands in place of the context, to see what of a gain is its: ``unrelated``,
            ``wrong``, or ``none``, the prompt alone. Everything else stays as it is.

    Raises:
        UserError: values that do not go together.
    """

    name: str = "teacher"
    context: str = "demonstration"
    weights: str = "frozen"
    template: str = DEMONSTRATION
    column: str | None = None
    ratio: float = 1.0
    rate: float = 0.05
    every: int = 1
    path: str | None = None
    only: Mapping[str, Any] = field(default_factory=dict)
    strip_thinking: bool = False
    max_length: int | None = None
    too_long: str = "untaught"
    control: str | None = None

    def __post_init__(self) -> None:
        choose("context of a teacher", self.context, CONTEXTS)
        choose("weights of a teacher", self.weights, KINDS)
        choose("too_long of a teacher", self.too_long, TOO_LONG)
        if self.control is not None:
            choose("control", self.control, CONTROLS)
        if (self.context == "column") != (self.column is not None):
            raise UserError(
                f"teacher '{self.name}': context 'column' and the name of a column go together, "
                f"got context {self.context!r} and column {self.column!r}"
            )
        if self.path is not None and self.weights != "model":
            raise UserError(f"teacher '{self.name}': a path has no effect with {self.weights!r}")
        if self.context != "none" and any(
            self.template.count(x) != 1 for x in ("{prompt}", "{context}")
        ):
            raise UserError(
                f"the template of teacher '{self.name}' needs {{prompt}} and {{context}} once "
                f"each, got {self.template!r}"
            )
        if not 0.0 < self.ratio <= 1.0 or not 0.0 < self.rate <= 1.0 or self.every < 1:
            raise UserError(
                f"teacher '{self.name}': ratio and rate must be in (0, 1] and every at least 1, "
                f"got {self.ratio}, {self.rate} and {self.every}"
            )

    @property
    def shown(self) -> str:
        """The context that its prompt has: the control's, where there is one."""
        return self.control or self.context

    @property
    def moves(self) -> bool:
        """Whether it scores the rows anew in each optimizer step."""
        return self.weights in MOVING

    @property
    def model(self) -> str:
        """The folder or Hub name of its model.

        Raises:
            UserError: there is none.
        """
        if self.path is None:
            raise UserError(
                f"teacher '{self.name}' is another model: give its folder or Hub name as path, an "
                "option of the method"
            )
        return self.path

    def write(self, prompt: str, context: str) -> str:
        """The text of its prompt's last message.

        Args:
            prompt: the policy's.
            context: what the policy does not see.
        """
        values = {"{prompt}": prompt, "{context}": context}
        return re.sub(r"\{(?:prompt|context)\}", lambda m: values[m[0]], self.template)


THINKING = re.compile(r"<think>.*?(?:</think>|\Z)\s*", re.DOTALL)


def without_thinking(text: str) -> str:
    """A text without what stands between think tags; one that the text ends inside of goes too."""
    return THINKING.sub("", text)


FEWEST_WORDS = 3
_BETWEEN = re.compile(r"\{(?:prompt|context)\}|[.!?:;]+(?=\s|$)|\n")


def phrases(template: str) -> tuple[str, ...]:
    """A template's own sentences, as :func:`quotes` looks for them, of three words or more.

    Shorter ones ("A solution:") stand in many a text that has seen no template.

    Args:
        template: a text with ``{prompt}`` and ``{context}``.
    """
    parts = (_plain(part) for part in _BETWEEN.split(template))
    return tuple(dict.fromkeys(p for p in parts if len(p.split()) >= FEWEST_WORDS))


def quotes(text: str, said: Sequence[str]) -> bool:
    """Whether a text has one of some phrases in it, whatever its case and its blanks.

    Args:
        text: the text of a completion.
        said: phrases, from :func:`phrases`.
    """
    plain = _plain(text)
    return any(phrase in plain for phrase in said)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
