"""What a method is: plain data that says which rows a group has and how each token is trained.

Every method is a sum of streams of one form (L over streams s, tokens t of rows i):

    L = sum_s c_s * (-1/Z_s) * sum_it m_it * S_s(rho_it, A_i),    rho = exp(logp - old_logp)

A stream names its tokens (``m``), surrogate (``S``), advantage (``A``), coefficient (``c``), and
the tokens or rows that its normaliser (``Z``) counts. Engines read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.core.advantage import BASELINES
from prefix_rft.core.prefix import PrefixSampler
from prefix_rft.core.schedules import Schedule, constant
from prefix_rft.core.select import MODES, SCOPES
from prefix_rft.errors import UserError, choose

ORIGINS = ("policy", "prefix", "continuation", "demonstration")
"""Where a token comes from: an on-policy row; the demonstration part of a hybrid row; the sampled
part of a hybrid row; a row that is a whole demonstration."""

ROLLOUT = ("policy", "prefix", "continuation")
SURROGATES = ("clip", "ratio", "logp", "kl", "entropy")
ADVANTAGES = ("group", "policy_group", "reward")
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const")
SOURCES = ("rollout", "current")
TRUNCATED = ("keep", "mask")

DEFAULT_CONST = 8192.0
"""``sum_over_const`` divides by the paper's completion budget unless an engine knows its own."""


@dataclass(frozen=True)
class Stream:
    """One term of the objective.

    Attributes:
        name: for metrics and tables.
        tokens: origins of the tokens that the term trains.
        surrogate: ``clip`` is PPO's ``min(rho A, clip(rho) A)`` (arXiv 1707.06347, eq. 7);
            ``ratio`` is ``rho A``; ``logp`` is ``A log pi`` (maximum likelihood for A = 1);
            ``kl`` is minus the k3 estimator against the reference policy (arXiv 2402.03300, eq. 4);
            ``entropy`` is the entropy of the policy.
        advantage: ``group`` (against all rollouts of the group), ``policy_group`` (against its
            on-policy rows only), ``reward`` (the raw reward), or a constant. Unused by ``kl`` and
            ``entropy``.
        count: origins whose tokens and rows the normaliser counts; ``tokens`` by default.
        coefficient: ``c``, a schedule over steps.
    """

    name: str
    tokens: tuple[str, ...]
    surrogate: str = "clip"
    advantage: str | float = "group"
    count: tuple[str, ...] = ()
    coefficient: Schedule = constant(1.0)

    def __post_init__(self) -> None:
        choose("surrogate", self.surrogate, SURROGATES)
        if isinstance(self.advantage, str):
            choose("advantage", self.advantage, ADVANTAGES)
        for origin in (*self.tokens, *self.count):
            choose("token origin", origin, ORIGINS)
        if not self.tokens:
            raise UserError(f"stream '{self.name}' trains no token: give it at least one origin")

    @property
    def counted(self) -> tuple[str, ...]:
        """Origins that the normaliser counts."""
        return self.count or self.tokens


@dataclass(frozen=True)
class Selection:
    """Which prefix tokens keep their advantage: the top ``fraction`` by entropy.

    ``scope`` is the pool that is ranked: all rollouts of a ``step``, the ``minibatch`` of one
    optimizer update (the paper), or each ``row``. ``source`` is the policy whose entropy counts:
    the one that made the rollouts, or the ``current`` one at the update. Tokens that are not kept
    have advantage 0 and stay in every denominator.
    """

    fraction: float = 0.2
    mode: str = "high"
    scope: str = "minibatch"
    source: str = "current"

    def __post_init__(self) -> None:
        choose("entropy mode", self.mode, MODES)
        choose("entropy scope", self.scope, SCOPES)
        choose("entropy source", self.source, SOURCES)
        if not 0.0 <= self.fraction <= 1.0:
            raise UserError(f"the fraction to keep must be in [0, 1], got {self.fraction}")


@dataclass(frozen=True)
class Method:
    """A post-training method as data. See the module docstring for the objective.

    Attributes:
        name: how recipes call it.
        summary: one line for tables.
        source: paper and section.
        streams: the terms of the objective.
        num_hybrid: rows of each group that start from a demonstration prefix.
        num_demonstrations: rows of each group that are a whole demonstration.
        prefix: the law of the prefix length; needed when ``num_hybrid`` is positive.
        selection: which prefix tokens keep their advantage; None keeps all.
        baseline: of the group advantages.
        aggregation: ``token_mean`` divides by the number of counted tokens; ``seq_mean_token_mean``
            averages each row over its own counted tokens, then the rows; ``sum_over_const`` divides
            by the number of counted rows and ``const``.
        const: of ``sum_over_const``; None is the engine's ``max_completion_length``, or 8192.
        epsilon: lower clip range, and the upper one where ``epsilon_high`` is None.
        epsilon_high: upper clip range.
        delta: upper bound of the unclipped ratio (two-sided or "dual" clip, arXiv 1912.09729).
        truncated: ``mask`` takes the advantage from sampled tokens of rows that ran into the limit.
        options: the resolved options, for tables and run folders.
    """

    name: str
    streams: tuple[Stream, ...]
    summary: str = ""
    source: str = ""
    num_hybrid: int = 0
    num_demonstrations: int = 0
    prefix: PrefixSampler | None = None
    selection: Selection | None = None
    baseline: str = "mean"
    aggregation: str = "token_mean"
    const: float | None = None
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    truncated: str = "keep"
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        choose("aggregation", self.aggregation, AGGREGATIONS)
        choose("baseline", self.baseline, BASELINES)
        choose("treatment of truncated rows", self.truncated, TRUNCATED)
        if not self.streams:
            raise UserError(f"method '{self.name}' has no stream, so it would train nothing")
        if self.num_hybrid < 0 or self.num_demonstrations < 0:
            raise UserError("numbers of hybrid and demonstration rows must be at least 0")
        if self.num_hybrid and self.prefix is None:
            raise UserError(f"method '{self.name}' has hybrid rows but no prefix sampler")
        if self.const is not None and self.const <= 0:
            raise UserError(f"const must be positive, got {self.const}")
        high = self.clip_high
        if not 0.0 <= self.epsilon <= 1.0 or high < 0.0:
            raise UserError(
                f"epsilon must be in [0, 1] and epsilon_high >= 0, got {self.epsilon} and {high}"
            )
        if self.delta is not None and self.delta <= 1.0 + high:
            raise UserError(f"delta must exceed 1 + epsilon_high = {1.0 + high}, got {self.delta}")

    @property
    def clip_high(self) -> float:
        """The upper clip range."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def samples(self) -> bool:
        """Whether the policy samples at all; a pure imitation method does not."""
        return any(origin in ROLLOUT for stream in self.streams for origin in stream.tokens)

    @property
    def needs_demonstrations(self) -> bool:
        """Whether the method is meaningless on data without any demonstration."""
        return bool(self.num_hybrid or self.num_demonstrations)

    @property
    def needs_reference(self) -> bool:
        """Whether a stream compares with the reference policy."""
        return any(stream.surrogate == "kl" for stream in self.streams)


def regularisers(
    beta: float, entropy_coef: float, tokens: tuple[str, ...], count: tuple[str, ...] = ()
) -> tuple[Stream, ...]:
    """The KL and entropy streams of a method, left out where their coefficient is 0."""
    streams = []
    for name, coefficient in (("kl", beta), ("entropy", entropy_coef)):
        if coefficient:
            streams.append(Stream(name, tokens, name, 1.0, count, constant(coefficient)))
    return tuple(streams)
