"""The parts of a method beside its streams and rows; each checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.core.stream import AGGREGATIONS
from prefix_rft.support.errors import UserError, choose

TRUNCATED = ("keep", "mask")
ALL_WRONG = ("keep", "drop", "resample", "lengthen", "demonstration", "guide")
ALL_RIGHT = ("keep", "drop", "resample")
SAMPLERS = ("policy", "reference")

DEFAULT_CONST = 8192.0
"""``sum_over_const`` divides by the paper's completion budget unless an engine knows its own."""


@dataclass(frozen=True)
class Normaliser:
    """What the sums of the streams are divided by.

    Attributes:
        aggregation: ``token_mean`` divides by the number of counted tokens; ``seq_mean_token_mean``
            averages each row over its own counted tokens, then the rows; ``sum_over_const`` divides
            by the number of counted rows and ``const``; ``sum`` by ``const`` alone.
        const: the constant divisor of the sums; None is the engine's ``max_completion_length``, or
            8192.
    """

    aggregation: str = "token_mean"
    const: float | None = None

    def __post_init__(self) -> None:
        choose("aggregation", self.aggregation, AGGREGATIONS)
        if self.const is not None and self.const <= 0:
            raise UserError(f"const must be positive, got {self.const}")


@dataclass(frozen=True)
class Clip:
    """The range of the importance ratio (arXiv 1707.06347, eq. 7).

    Attributes:
        low: lower clip range, and the upper one where ``high`` is None; option ``epsilon``.
        high: upper clip range; option ``epsilon_high``.
        delta: upper bound of the unclipped ratio (two-sided or "dual" clip, arXiv 1912.09729).
    """

    low: float = 0.2
    high: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        high = self.upper
        if not 0.0 <= self.low <= 1.0 or high < 0.0:
            raise UserError(
                f"epsilon must be in [0, 1] and epsilon_high >= 0, got {self.low} and {high}"
            )
        if self.delta is not None and self.delta <= 1.0 + high:
            raise UserError(f"delta must exceed 1 + epsilon_high = {1.0 + high}, got {self.delta}")

    @property
    def upper(self) -> float:
        """The upper clip range."""
        return self.low if self.high is None else self.high


@dataclass(frozen=True)
class Overlong:
    """A price on long rows (DAPO, arXiv 2503.14476, section 3.4).

    Attributes:
        buffer: share of the completion budget over which the reward falls; 0 is none.
        penalty: what a row at the budget loses.
    """

    buffer: float = 0.2
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.buffer <= 1.0:
            raise UserError(f"overlong_buffer must be in [0, 1], got {self.buffer}")


@dataclass(frozen=True)
class Interleave:
    """Steps that are made of demonstrations alone, of prompts that were set aside.

    Attributes:
        unsolved_at: solve rate at or below which a prompt's demonstrations are set aside; when
            enough wait, the next generation is made of them.
        prompts: how many are enough; None is the rows of a generation. The rows that are left over
            take no part in the step.
    """

    unsolved_at: float = 0.0
    prompts: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.unsolved_at <= 1.0:
            raise UserError(f"a solve rate must be in [0, 1], got {self.unsolved_at}")
        if self.prompts is not None and self.prompts < 1:
            raise UserError(f"sft_prompts must be at least 1, got {self.prompts}")


@dataclass(frozen=True)
class Groups:
    """What becomes of a group once its rewards are known.

    Attributes:
        all_wrong: what becomes of a group in which no sampled row is solved: ``keep`` it; ``drop``
            it from the step and its normalisers; ``resample`` another prompt in its place (and drop
            it if that fails too); ``lengthen`` its prefixes and sample again; put a whole
            ``demonstration`` in the place of its first row; ``guide`` it: sample its rows from the
            prompt of the teacher that its guided stream reads, and drop those that fail still.
        all_right: ``keep``, ``drop`` or ``resample`` a group in which every row is solved.
        attempts: how many times a group may be sampled again.
        solved_above: a row is solved if its reward exceeds this.
        truncated: ``mask`` takes the advantage from sampled tokens of rows that ran into the limit.
        overlong: a price on long rows.
        interleave: steps of demonstrations of prompts that failed.
    """

    all_wrong: str = "keep"
    all_right: str = "keep"
    attempts: int = 3
    solved_above: float = 0.0
    truncated: str = "keep"
    overlong: Overlong | None = None
    interleave: Interleave | None = None

    def __post_init__(self) -> None:
        choose("treatment of truncated rows", self.truncated, TRUNCATED)
        choose("all_wrong", self.all_wrong, ALL_WRONG)
        choose("all_right", self.all_right, ALL_RIGHT)
        if self.attempts < 1:
            raise UserError(f"attempts must be at least 1, got {self.attempts}")
        if self.all_wrong == "resample" and self.interleave is not None:
            raise UserError(
                "prompts that fail are set aside, so they cannot be replaced: choose another "
                "all_wrong"
            )

    @property
    def sampled_again(self) -> bool:
        """Whether a group may be changed once its rewards are known."""
        return self.all_wrong not in ("keep", "drop") or self.all_right == "resample"


@dataclass(frozen=True)
class Reference:
    """The part that a reference policy plays beyond a KL term.

    Attributes:
        sampler: which policy makes the rollouts: the trained ``policy``, or the ``reference``.
        stages: how many times in the run the reference is set to the policy; 1 is the policy that
            the run starts from.
    """

    sampler: str = "policy"
    stages: int = 1

    def __post_init__(self) -> None:
        choose("sampler", self.sampler, SAMPLERS)
        if self.stages < 1:
            raise UserError(f"stages of the reference must be at least 1, got {self.stages}")


@dataclass(frozen=True)
class About:
    """What tables, pages and run folders say of a method.

    Attributes:
        summary: one line for tables.
        source: paper and section.
        unverified: what of the method could not be checked against its source.
        options: the resolved options; no part of what the method is.
    """

    summary: str = ""
    source: str = ""
    unverified: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
