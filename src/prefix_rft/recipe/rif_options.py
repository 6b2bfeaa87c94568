"""A recipe's ``rif``: rollout-based instance filtering before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from prefix_rft.support.errors import UserError, check_types, refuse_unknown


@dataclass(frozen=True)
class Filter:
    """A recipe's ``rif``: a prompt stays if ``min_solved <= solved rollouts <= max_solved``.

    Attributes:
        samples: rollouts of each prompt.
        min_solved: fewer solved ones, and the prompt is left out.
        max_solved: more, and it is left out too; by default there is no such bound.
        temperature: the temperature of the rollouts.
        solved_above: a rollout is solved if its reward exceeds this.
    """

    samples: int = 8
    min_solved: int = 1
    max_solved: int | None = None
    temperature: float = 1.0
    solved_above: float = 0.0

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Filter:
        """Check the options of a recipe.

        Raises:
            UserError: one is unknown or cannot be used.
        """
        kinds = {f.name: str(f.type) for f in fields(cls)}
        refuse_unknown("option of rif", settings, kinds)
        check_types("option of rif", settings, kinds)
        rule = cls(**settings)
        top = rule.samples if rule.max_solved is None else rule.max_solved
        if rule.samples < 1 or not 0 <= rule.min_solved <= top <= rule.samples:
            raise UserError(
                "rif: samples must be at least 1 and 0 <= min_solved <= max_solved <= samples, got "
                f"{rule.samples}, {rule.min_solved}, {rule.max_solved}"
            )
        if rule.temperature <= 0:
            raise UserError(f"rif: temperature must be positive, got {rule.temperature}")
        return rule
