"""What a method is: plain data that says which rows a group has and how each token is trained.

Every method is a sum of streams of one form (L over streams s, tokens t of rows i):

    L = sum_s c_s * (-1/Z_s) * sum_it m_it * w_it * S_s(rho_it, A_i),   rho = exp(logp - old_logp)

A stream names its tokens (``m``), weight (``w``, detached), surrogate (``S``), advantage (``A``),
coefficient (``c``), and the tokens or rows that its normaliser (``Z``) counts. Engines read
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.core.advantage import BASELINES
from prefix_rft.core.contrast import Contrast
from prefix_rft.core.planner import Lengthening, Planner, RandomPrefix
from prefix_rft.core.prefix import PrefixSampler
from prefix_rft.core.schedules import Schedule, constant
from prefix_rft.core.select import MODES, SCOPES
from prefix_rft.core.weights import Shape, Weight
from prefix_rft.support.errors import UserError, choose

ORIGINS = ("policy", "prefix", "continuation", "demonstration")
"""Where a token comes from: an on-policy row; the demonstration part of a hybrid row; the sampled
part of a hybrid row; a row that is a whole demonstration."""

ROLLOUT = ("policy", "prefix", "continuation")
SAMPLED = ("policy", "continuation")
SURROGATES = ("clip", "ratio", "cispo", "logp", "likelihood", "kl", "entropy")
ADVANTAGES = (
    "group", "sampled_group", "policy_group", "hybrid_group", "batch",
    "reward", "solved", "unsolved", "sequence",
)  # fmt: skip
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const", "sum")
REGULARISERS = ("kl", "entropy")
LEVELS = ("token", "sequence")
COUNTS = ("all", "trained")
SOURCES = ("rollout", "current")
TRUNCATED = ("keep", "mask")
ALL_WRONG = ("keep", "drop", "resample", "lengthen", "demonstration")
ALL_RIGHT = ("keep", "drop", "resample")
SAMPLERS = ("policy", "reference")

DEFAULT_CONST = 8192.0
"""``sum_over_const`` divides by the paper's completion budget unless an engine knows its own."""


@dataclass(frozen=True)
class Stream:
    """One term of the objective.

    Attributes:
        name: for metrics and tables.
        tokens: origins of the tokens that the term trains.
        surrogate: ``clip`` is PPO's ``min(rho A, clip(rho) A)`` (arXiv 1707.06347, eq. 7);
            ``ratio`` is ``rho A``; ``cispo`` is ``A log pi`` with the detached clipped ratio as
            weight (arXiv 2506.13585); ``logp`` is ``A log pi`` (maximum likelihood for A = 1);
            ``likelihood`` is ``A f(pi)``, ``f`` the shape; ``kl`` is minus the k3 estimator against
            the reference policy (arXiv 2402.03300, eq. 4); ``entropy`` is the policy's entropy.
        advantage: ``group`` (against all rows of the group, with the whole demonstrations that the
            method plans), ``sampled_group`` (without them), ``policy_group`` (against its on-policy
            rows only), ``hybrid_group`` (against its hybrid rows only), ``batch`` (against all rows
            of the generation), ``reward`` (the raw reward), ``solved`` (1 for a solved row, else
            0), ``unsolved`` (-1 for one that is not, else 0), ``sequence`` (from the method's
            contrast), or a constant. Unused by ``kl`` and ``entropy``.
        count: origins whose tokens and rows the normaliser counts; ``tokens`` by default.
        coefficient: ``c``, a schedule over steps.
        weight: detached factor on every token or row.
        shape: ``f`` of ``likelihood``; the identity by default.
        gate: ``(low, high)``: the stream acts on groups whose on-policy rows are solved at a rate
            in ``(low, high]``. A closed gate leaves the normaliser as it is.
        level: of the importance ratio: each ``token``, or the ``sequence`` (GSPO, arXiv 2507.18071,
            eq. 7: the geometric mean over the row's tokens).
        aggregation: of this stream; the method's by default.
        counts: the normaliser counts ``all`` tokens and rows of the counted origins, or only those
            that are ``trained``.
    """

    name: str
    tokens: tuple[str, ...]
    surrogate: str = "clip"
    advantage: str | float = "group"
    count: tuple[str, ...] = ()
    coefficient: Schedule = constant(1.0)
    weight: Weight | None = None
    shape: Shape | None = None
    gate: tuple[float, float] | None = None
    level: str = "token"
    aggregation: str | None = None
    counts: str = "all"

    def __post_init__(self) -> None:
        choose("surrogate", self.surrogate, SURROGATES)
        if isinstance(self.advantage, str):
            choose("advantage", self.advantage, ADVANTAGES)
        for origin in (*self.tokens, *self.count):
            choose("token origin", origin, ORIGINS)
        if not self.tokens:
            raise UserError(f"stream '{self.name}' trains no token: give it at least one origin")
        choose("level of the ratio", self.level, LEVELS)
        choose("what the normaliser counts", self.counts, COUNTS)
        if self.aggregation is not None:
            choose("aggregation", self.aggregation, AGGREGATIONS)
        if self.shape is not None and self.surrogate != "likelihood":
            raise UserError(f"stream '{self.name}' has a shape, which only 'likelihood' reads")
        if self.gate is not None and self.gate[0] >= self.gate[1]:
            raise UserError(f"stream '{self.name}' has an empty gate {self.gate}")

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
        planner: decides where rows start, in place of the three fields above.
        selection: which prefix tokens keep their advantage; None keeps all.
        baseline: of the group advantages.
        aggregation: ``token_mean`` divides by the number of counted tokens; ``seq_mean_token_mean``
            averages each row over its own counted tokens, then the rows; ``sum_over_const`` divides
            by the number of counted rows and ``const``; ``sum`` by ``const`` alone.
        const: of the sums; None is the engine's ``max_completion_length``, or 8192.
        epsilon: lower clip range, and the upper one where ``epsilon_high`` is None.
        epsilon_high: upper clip range.
        delta: upper bound of the unclipped ratio (two-sided or "dual" clip, arXiv 1912.09729).
        truncated: ``mask`` takes the advantage from sampled tokens of rows that ran into the limit.
        all_wrong: what becomes of a group in which no sampled row is solved: ``keep`` it; ``drop``
            it from the step and its normalisers; ``resample`` another prompt in its place (and
            drop it if that fails too); ``lengthen`` its prefixes and sample again; put a whole
            ``demonstration`` in the place of its first row.
        all_right: ``keep``, ``drop`` or ``resample`` a group in which every row is solved.
        attempts: how many times a group may be sampled again.
        solved_above: a row is solved if its reward exceeds this.
        overlong_buffer: share of the completion budget over which the reward of long rows falls
            (DAPO, arXiv 2503.14476); 0 is none.
        overlong_penalty: what a row at the budget loses.
        interleave: solve rate at or below which a prompt's demonstrations are set aside; when
            enough wait, the next generation is made of them. None is never.
        interleave_rows: how many are enough; None is the rows of a generation. The rows that are
            left over take no part in the step.
        contrast: gives the ``sequence`` advantage.
        sampler: which policy makes the rollouts: the trained one, or the reference.
        reference_stages: how many times in the run the reference is set to the policy; 1 is the
            policy that the run starts from.
        unverified: what of the method could not be checked against its source.
        options: the resolved options, for tables and run folders.
    """

    name: str
    streams: tuple[Stream, ...]
    summary: str = ""
    source: str = ""
    num_hybrid: int = 0
    num_demonstrations: int = 0
    prefix: PrefixSampler | None = None
    planner: Planner | None = None
    selection: Selection | None = None
    baseline: str = "mean"
    aggregation: str = "token_mean"
    const: float | None = None
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    truncated: str = "keep"
    all_wrong: str = "keep"
    all_right: str = "keep"
    attempts: int = 3
    solved_above: float = 0.0
    overlong_buffer: float = 0.0
    overlong_penalty: float = 1.0
    interleave: float | None = None
    interleave_rows: int | None = None
    contrast: Contrast | None = None
    sampler: str = "policy"
    reference_stages: int = 1
    unverified: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        choose("aggregation", self.aggregation, AGGREGATIONS)
        choose("baseline", self.baseline, BASELINES)
        choose("treatment of truncated rows", self.truncated, TRUNCATED)
        choose("all_wrong", self.all_wrong, ALL_WRONG)
        choose("all_right", self.all_right, ALL_RIGHT)
        choose("sampler", self.sampler, SAMPLERS)
        if not self.streams:
            raise UserError(f"method '{self.name}' has no stream, so it would train nothing")
        if self.interleave_rows is not None and self.interleave_rows < 1:
            raise UserError(f"interleave_rows must be at least 1, got {self.interleave_rows}")
        if self.attempts < 1 or self.reference_stages < 1:
            raise UserError("attempts and reference_stages must be at least 1")
        if not 0.0 <= self.overlong_buffer <= 1.0:
            raise UserError(f"overlong_buffer must be in [0, 1], got {self.overlong_buffer}")
        if self.contrast is None and any(s.advantage == "sequence" for s in self.streams):
            raise UserError(f"method '{self.name}' has a sequence advantage but no contrast")
        self._check_all_wrong()
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

    def _check_all_wrong(self) -> None:
        if self.all_wrong == "lengthen" and not self.trains("continuation"):
            raise UserError(
                f"method '{self.name}' trains no continuation, so it cannot lengthen a prefix: "
                "choose another all_wrong"
            )
        if self.all_wrong == "resample" and self.interleave is not None:
            raise UserError(
                f"method '{self.name}' sets aside prompts that fail, so they cannot be replaced: "
                "choose another all_wrong"
            )
        if self.interleave is not None and not 0.0 <= self.interleave <= 1.0:
            raise UserError(f"a solve rate must be in [0, 1], got {self.interleave}")
        if self.all_wrong in ("drop", "resample") and any(
            s.gate is not None and s.gate[0] < 0.0 for s in self.streams
        ):
            raise UserError(
                f"method '{self.name}' trains on groups that fail, so they cannot be left out: "
                "choose another all_wrong"
            )
        if self.all_wrong == "demonstration" and not self.trains("demonstration"):
            raise UserError(
                f"method '{self.name}' trains no demonstration, so all_wrong: demonstration has "
                "no effect"
            )

    def trains(self, origin: str) -> bool:
        """Whether a stream, KL and entropy aside, acts on tokens of this origin."""
        return any(origin in s.tokens for s in self.streams if s.surrogate not in REGULARISERS)

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
        return bool(
            self.num_hybrid
            or self.num_demonstrations
            or self.planner is not None
            or self.interleave is not None
            or self.all_wrong in ("lengthen", "demonstration")
        )

    @property
    def law(self) -> Planner:
        """The planner that decides where rows start."""
        law = self.planner or RandomPrefix(self.num_hybrid, self.num_demonstrations, self.prefix)
        lengthens = self.all_wrong == "lengthen" and not isinstance(law, Lengthening)
        return Lengthening(law) if lengthens else law

    @property
    def branches(self) -> bool:
        """Whether rows of a group can differ in where they start, or in whether they sample."""
        return self.needs_demonstrations or self.samples_again

    @property
    def remembers(self) -> bool:
        """Whether anything is remembered of single examples."""
        return self.law.remembers or self.interleave is not None or self.contrast is not None

    @property
    def samples_again(self) -> bool:
        """Whether a group may be changed once its rewards are known."""
        return self.all_wrong not in ("keep", "drop") or self.all_right == "resample"

    @property
    def needs_reference(self) -> bool:
        """Whether anything compares with, or samples from, the reference policy."""
        return self.needs_own_reference or any(s.surrogate == "kl" for s in self.streams)

    @property
    def needs_own_reference(self) -> bool:
        """Whether it needs the reference policy for more than a KL term."""
        return (
            self.sampler == "reference"
            or any(s.weight is not None and s.weight.needs_reference for s in self.streams)
            or (self.contrast is not None and self.contrast.needs_reference)
        )

    @property
    def needs_unit_temperature(self) -> bool:
        """Whether a stream reads likelihoods as such: they are those of temperature 1."""
        return any(
            s.weight is not None
            or (
                s.surrogate in ("logp", "likelihood")
                and set(s.tokens) & {"prefix", "demonstration"}
            )
            for s in self.streams
        )


EVERYONE = ORIGINS
"""All tokens: what a normaliser counts that streams on rollouts and demonstrations share."""


def fallback(count: tuple[str, ...] = EVERYONE) -> Stream:
    """Maximum likelihood of a whole demonstration: what ``all_wrong: demonstration`` trains."""
    return Stream("demonstration", ("demonstration",), "logp", 1.0, count)


def regularisers(
    beta: float,
    entropy_coef: float,
    tokens: tuple[str, ...],
    count: tuple[str, ...] = (),
    gate: tuple[float, float] | None = None,
) -> tuple[Stream, ...]:
    """The KL and entropy streams of a method, left out where their coefficient is 0."""
    streams = []
    for name, coefficient in (("kl", beta), ("entropy", entropy_coef)):
        if coefficient:
            streams.append(Stream(name, tokens, name, 1.0, count, constant(coefficient), gate=gate))
    return tuple(streams)
