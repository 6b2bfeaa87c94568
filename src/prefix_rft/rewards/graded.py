"""A reward function whose completions are graded one by one in a pool of killable processes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefix_rft.rewards.checked import RewardError
from prefix_rft.rewards.pool import GraderPool, Limits
from prefix_rft.rewards.verdict import NO_ANSWER_IS, Verdict, settled
from prefix_rft.support.errors import UserError, choose

logger = logging.getLogger("prefix_rft")

GIVEN = ("completions", "prompts", "completion_ids")
"""What every reward function is given beside the columns."""
STAYS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes that has no meaning in another process."""


class Graded:
    """Callable with TRL's reward signature; ``verdicts`` are those of its last call.

    Each completion is graded by a call of its own, with lists of one: a function that compares the
    completions of a batch with one another must run whole (``whole_batch`` in a recipe).

    Args:
        function: ``package.module:function`` with TRL's signature.
        name: its name in messages and metrics.
        folder: the folder where modules beside the recipe are looked for.
        options: keyword arguments of the function.
        no_answer: count rows without an answer as ``wrong`` (reward 0), or ``exclude`` them.
        workers: processes.
        limits: the limits of one completion.

    Attributes:
        verdicts: the verdicts of the last call.
        tick: called now and then with how many completions of a call are graded.
        required: parameters that must be columns of the data.
        tests_gold: it judges gold answers whatever the completion.
        decided_by: all that decides a verdict, as plain data.

    Raises:
        UserError: the function cannot be imported, an option that it does not name, or a parameter
            that cannot reach its process.
    """

    def __init__(
        self,
        function: str,
        name: str | None = None,
        folder: Path = Path(),
        options: Mapping[str, Any] | None = None,
        no_answer: str = "wrong",
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        choose("value of no_answer", no_answer, NO_ANSWER_IS)
        self.__name__ = name or function.rpartition(":")[2]
        self.verdicts: list[Verdict] = []
        self.tick: Callable[[int], None] = lambda done: None
        self.no_answer = no_answer
        self.kept_back: set[str] = set()
        self.options = dict(options or {})
        self.pool = GraderPool(function, folder, self.options, workers, limits)
        signature = self.pool.start()
        self.parameters: list[str] = signature["parameters"]
        self.keywords: bool = signature["keywords"]
        self.required: list[str] = [
            p for p in signature["required"] if p not in (*GIVEN, *self.options)
        ]
        self.tests_gold: bool = signature["tests_gold"]
        self.decided_by = [function, self.options, no_answer, asdict(self.pool.limits)]
        self.decided_by.append(signature["source"])
        for option in self.options:
            choose(f"option of reward '{self.__name__}'", option, self.parameters)
        for parameter in self.parameters:
            if parameter in STAYS:
                raise UserError(
                    f"reward '{self.__name__}' takes '{parameter}', which cannot reach the process "
                    "that it runs in: add whole_batch: true to run it in the trainer's"
                )

    is_checked = True

    def __call__(self, /, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Rewards of the completions; None where one could not be graded."""
        self.verdicts = self.grade(completions, columns)
        return [v.reward for v in self.verdicts]

    def grade(
        self, completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Verdict]:
        """The verdicts alone.

        Args:
            completions: texts or conversations.
            columns: values for each completion, by name.
        """
        sent = {"completions": completions}
        for name, values in columns.items():
            named = name in self.parameters
            if name in STAYS or not (named or self.keywords):
                continue
            if name in self.options:
                raise RewardError(
                    f"reward '{self.__name__}': '{name}' is both an option and a column of the data"
                )
            if named or _plain(values):
                sent[name] = values
            elif name not in self.kept_back:
                self.kept_back.add(name)
                logger.warning(
                    "reward '%s' is not given column '%s': its values are no plain data "
                    "(whole_batch: true would give it)",
                    self.__name__,
                    name,
                )
        rows = zip(*sent.values(), strict=True)
        try:
            items = [dict(zip(sent, row, strict=True)) for row in rows]
            verdicts = self.pool.grade(items, self.tick)
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise RewardError(
                f"reward '{self.__name__}': a column holds values that are no plain data and "
                f"cannot reach its process ({error}): add whole_batch: true"
            ) from error
        return [settled(v, self.no_answer) for v in verdicts]

    def close(self) -> None:
        """End the pool's processes; the next call starts new ones."""
        self.pool.close()


def _plain(values: Sequence[Any]) -> bool:
    """Whether JSON can carry a column, judged by its first value that is there."""
    first = next((v for v in values if v is not None), None)
    try:
        json.dumps(first)
    except TypeError:
        return False
    return True


def close_all(rewards: Iterable[Callable[..., Any]]) -> None:
    """End the processes of those rewards that have some."""
    for reward in rewards:
        if isinstance(reward, Graded):
            reward.close()
