"""The ``prefix_rft:`` block of verl's configuration. Needs no verl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefix_rft.core import Method
from prefix_rft.data import Reading
from prefix_rft.engines.options import SHARED, check_rows, parse_options, resolve, with_const
from prefix_rft.engines.teachers import with_paths
from prefix_rft.support.errors import UserError, check_range, check_types, refuse_unknown

KEY = "prefix_rft"


@dataclass(frozen=True)
class MethodConfig:
    """Keys, names and defaults of the TRL engine; None is the method's own default.

    Attributes:
        method: built-in method, or ``package.module:function``.
        method_options: the method's options; a mapping, or JSON.
        epsilon: lower clip range.
        epsilon_high: upper clip range.
        delta: two-sided clip.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
        reward: the reward, as in a recipe; None leaves rewards to verl's ``reward.*`` settings.
        columns: names in the data, as in a recipe.
        system_prompt: the system prompt, as in a recipe.
        max_demonstrations: the most demonstrations of a row, as in a recipe.
        demonstration_fraction: the share of rows that keep theirs, as in a recipe.
        seed: the seed of prefixes, and of which rows keep their demonstrations.
        folder: what relative paths and modules of methods and rewards are relative to.
        chat_template_date: the moment that a chat template tells which asks for the date; None is
            that at which its dataset is made.
        weight_check: mean difference between the sampler's log-probs and the actor's, in nats a
            token, above which the run stops; None is never.
    """

    method: str = "prefix_rft"
    method_options: dict[str, Any] | str | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float | None = None
    entropy_coef: float | None = None
    reward: Any = None
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_demonstrations: int | None = None
    demonstration_fraction: float = 1.0
    seed: int = 42
    folder: str = "."
    chat_template_date: str | None = None
    weight_check: float | None = 0.5

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> MethodConfig:
        """From the configuration.

        Raises:
            UserError: an unknown key, or a value of the wrong type or out of range.
        """
        names = [f.name for f in fields(cls)]
        refuse_unknown(f"key of '{KEY}:'", settings, names)
        check_types(f"key of '{KEY}:'", settings, {f.name: str(f.type) for f in fields(cls)})
        block = cls(**settings)
        if block.weight_check is not None:
            check_range(f"{KEY}.weight_check", block.weight_check, 0.0)
        return block

    @property
    def reading(self) -> Reading:
        """How rows are read."""
        return Reading(
            self.columns,
            self.system_prompt,
            self.max_demonstrations,
            self.demonstration_fraction,
            self.seed,
        )

    def resolve_method(self, generations: int, max_completion_length: int) -> Method:
        """The method with its options.

        Args:
            generations: rows of a group.
            max_completion_length: the longest completion in tokens, prefix included.

        Raises:
            UserError: an unknown method or option, one given twice, one that this engine cannot
                run, or groups that are too small.
        """
        options: Any = self.method_options or {}
        if isinstance(options, str):
            options = parse_options(f"{KEY}.method_options", options)
        shared = {k: v for k in SHARED if (v := getattr(self, k)) is not None}
        where = f"in '{KEY}:'"
        under, beside = "in its method_options", Path(self.folder)
        method = resolve(self.method, options, shared, where, under, beside)
        if why := unsupported(method):
            raise UserError(f"method '{method.name}' does not run on verl: {why}; use engine: trl")
        try:
            check_rows(method, self.method, generations)
        except ValueError as error:
            raise UserError(str(error)) from error
        return with_const(with_paths(method, beside), max_completion_length)


def unsupported(method: Method) -> str | None:
    """Why this engine cannot run a method; None where it can."""
    chosen = method.selection
    again = (method.groups.all_wrong, method.groups.all_right)
    if not method.samples:
        return "it never samples"
    if "resample" in again:
        return "another prompt cannot be sampled in a group's place (all_wrong, all_right: drop)"
    if "guide" in again:
        return "a group that fails cannot be sampled from a teacher's prompt yet"
    if method.groups.interleave is not None:
        return "it sets prompts aside for steps of their own"
    if method.planner.hint is not None:
        return "its prompts are tokenized before it is known which hint they get"
    if method.contrast is not None:
        return "its contrast compares rows of a whole step in one process"
    if method.reference.sampler != "policy" or method.needs_own_reference:
        return "it needs a reference policy for more than a KL term"
    if any(s.surrogate == "divergence" for s in method.streams):
        return "its divergence over the vocabulary is not there yet"
    if method.teachers and method.planner.waits:
        return "its rows wait for others, and what its teachers show is not known of such rows"
    if chosen is not None and chosen.scope == "step" and chosen.source != "rollout":
        return "entropy_scope: step needs entropy_source: rollout here"
    return None
