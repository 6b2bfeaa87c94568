"""Own right answers that an arm trains on: how many are sampled, and what decides them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError, check_types, refuse_unknown

ROWS = "rows.jsonl"
"""The rows of a collection, in its run's folder."""
DECIDING = (
    *("model", "train_data", "columns", "system_prompt", "reward", "seed"),
    *("max_completion_length", "chat_template_kwargs"),
)
"""Recipe keys that decide what is collected."""


@dataclass(frozen=True)
class Collection:
    """What an arm collects of the model that it starts from, before it trains.

    Attributes:
        samples: the number of samples of each row of its ``train_data``, at temperature 1.
        keep: the most right answers of a row that it is trained on.
    """

    samples: int
    keep: int = 1

    @classmethod
    def read(cls, value: Any, arm: str) -> Collection | None:
        """A number of samples, or a mapping with ``samples`` and ``keep``; None for nothing.

        Args:
            value: ``collect`` of an arm.
            arm: the arm's name.

        Raises:
            UserError: it is neither, or a number is below 1.
        """
        if value is None:
            return None
        what = f"key of 'collect' of arm '{arm}':"
        settings = value if isinstance(value, Mapping) else {"samples": value}
        kinds = {f.name: str(f.type) for f in fields(cls)}
        refuse_unknown(what, settings, kinds)
        check_types(what, settings, kinds)
        if "samples" not in settings:
            raise UserError(f"'collect' of arm '{arm}' needs 'samples', of each row")
        for name, number in settings.items():
            if number < 1:
                raise UserError(f"{what} '{name}' must be at least 1, got {number}")
        return cls(**settings)


def decides(key: str) -> bool:
    """Whether a key of an arm, perhaps with dots or ``~``, decides what is collected."""
    return _root(key) in DECIDING


def refuse_swept(arm: str, sweep: Iterable[str]) -> None:
    """Look whether an arm collects once for all values of its sweep.

    Args:
        arm: the name of an arm that collects.
        sweep: the key that it sweeps.

    Raises:
        UserError: what it collects depends on the value.
    """
    for key in sweep:
        if decides(key):
            raise UserError(
                f"arm '{arm}' collects once for all values of 'sweep', but '{key}' decides what is "
                "collected: make an arm of each value"
            )


def trained_on(keys: Mapping[str, Any], rows: Path) -> dict[str, Any]:
    """Recipe keys of a run that trains on a collection's rows, whose columns have our names.

    Args:
        keys: its keys without the collection.
        rows: the rows.
    """
    kept = {k: v for k, v in keys.items() if _root(k) not in ("train_data", "columns")}
    return {**kept, "train_data": str(rows.resolve()), "columns": {}}


def _root(key: str) -> str:
    return key.removeprefix("~").partition(".")[0]
