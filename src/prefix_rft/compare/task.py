"""One of several tasks that a model is trained on, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.recipe.recipe import Recipe


@dataclass(frozen=True)
class ContinualTask:
    """What a task is, and how a model's answers to it are graded.

    Attributes:
        name: the task's name in tables, and that of its set of problems.
        keys: recipe keys that differ from the recipe that all share.
        recipe: the recipe with them.
        longest: the longest completion in tokens.
    """

    name: str
    keys: Mapping[str, Any]
    recipe: Recipe
    longest: int | None = None

    @property
    def problems(self) -> EvalSet:
        """Its held-out rows, with its own grader."""
        rows: Any = self.recipe.eval_data  # a task without them is refused before
        return EvalSet(
            self.name,
            rows,
            self.recipe.reward,
            columns=self.recipe.columns,
            system_prompt=self.recipe.system_prompt,
            max_completion_length=self.longest,
            limit=self.recipe.eval_problems,
            folder=self.recipe.folder,
        )
