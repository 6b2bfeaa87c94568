"""The terms of the objective: which tokens a stream trains, how, and against what."""

from __future__ import annotations

from dataclasses import dataclass

from prefix_rft.core.divergence import Divergence
from prefix_rft.core.schedules import Following, Schedule, constant
from prefix_rft.core.select import MODES, SCOPES
from prefix_rft.core.weights import Shape, Weight
from prefix_rft.support.errors import UserError, choose

ORIGINS = ("policy", "prefix", "continuation", "demonstration", "guided")
"""Where a token comes from: an on-policy row; the demonstration part of a hybrid row; the sampled
part of a hybrid row; a row that is a whole demonstration; a row that was sampled from a teacher's
prompt and is trained behind the policy's."""

ROLLOUT = ("policy", "prefix", "continuation")
SAMPLED = ("policy", "continuation")
SURROGATES = ("clip", "ratio", "cispo", "logp", "likelihood", "divergence", "kl", "entropy")
ADVANTAGES = (
    "group", "sampled_group", "policy_group", "hybrid_group", "batch",
    "reward", "solved", "unsolved", "sequence",
)  # fmt: skip
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const", "sum")
REGULARISERS = ("kl", "entropy")
LEVELS = ("token", "sequence")
COUNTS = ("all", "trained")
SOURCES = ("rollout", "current")


@dataclass(frozen=True)
class Stream:
    """One term of the objective.

    Attributes:
        name: the stream's name in metrics and tables.
        tokens: origins of the tokens that the term trains.
        surrogate: ``clip`` is PPO's ``min(rho A, clip(rho) A)`` (arXiv 1707.06347, eq. 7);
            ``ratio`` is ``rho A``; ``cispo`` is ``A log pi`` with the detached clipped ratio as
            weight (arXiv 2506.13585); ``logp`` is ``A log pi`` (maximum likelihood for A = 1);
            ``likelihood`` is ``A f(pi)``, ``f`` the shape; ``divergence`` is minus the divergence
            from the teacher over the vocabulary, on rows whose advantage is not 0; ``kl`` is minus
            the k3 estimator against the reference policy (arXiv 2402.03300, eq. 4); ``entropy`` is
            the policy's entropy.
        advantage: ``group`` (against all rows of the group, with the whole demonstrations that the
            method plans), ``sampled_group`` (without them), ``policy_group`` (against its on-policy
            rows only), ``hybrid_group`` (against its hybrid rows only), ``batch`` (against all rows
            of the generation), ``reward`` (the raw reward), ``solved`` (1 for a solved row, else
            0), ``unsolved`` (-1 for one that is not, else 0), ``sequence`` (from the method's
            contrast), or a constant. Unused by ``kl`` and ``entropy``.
        count: origins whose tokens and rows the normaliser counts; ``tokens`` by default.
        coefficient: ``c``, a schedule over steps, or what follows a metric.
        weight: detached factor on every token or row.
        shape: ``f`` of ``likelihood``; the identity by default.
        gate: ``(low, high)``: the stream acts on groups whose on-policy rows are solved at a rate
            in ``(low, high]``. A closed gate leaves the normaliser as it is.
        level: the level of the importance ratio: each ``token``, or the ``sequence`` (GSPO, arXiv
            2507.18071, eq. 7: the geometric mean over the row's tokens).
        aggregation: how this stream's terms are averaged; the method's by default.
        counts: the normaliser counts ``all`` tokens and rows of the counted origins, or only those
            that are ``trained``.
        teacher: the name of the teacher that its weight or its divergence reads; where its
            coefficient is 0, nothing is asked of that teacher.
        taught: it acts only on rows that its teacher teaches; a divergence always does.
        divergence: which divergence; there is one where that is the surrogate.
        skip: the first tokens of each response neither act nor count.
    """

    name: str
    tokens: tuple[str, ...]
    surrogate: str = "clip"
    advantage: str | float = "group"
    count: tuple[str, ...] = ()
    coefficient: Schedule | Following = constant(1.0)
    weight: Weight | None = None
    shape: Shape | None = None
    gate: tuple[float, float] | None = None
    level: str = "token"
    aggregation: str | None = None
    counts: str = "all"
    teacher: str = ""
    taught: bool = False
    divergence: Divergence | None = None
    skip: int = 0

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
        if self.skip < 0:
            raise UserError(f"stream '{self.name}' cannot skip {self.skip} tokens")
        if (self.divergence is None) == (self.surrogate == "divergence"):
            raise UserError(
                f"stream '{self.name}': the surrogate 'divergence', and which one, go together"
            )
        reads = self.divergence is not None or (self.weight is not None and self.weight.teacher)
        if (reads or self.taught) != bool(self.teacher):
            raise UserError(
                f"stream '{self.name}': the name of a teacher, and a weight or a divergence that "
                "reads one, go together"
            )
        if "guided" in self.tokens and self.surrogate in ("clip", "ratio", "cispo"):
            raise UserError(
                f"stream '{self.name}' trains guided rows, which the policy did not sample from "
                "its own prompt: there is no ratio, choose another surrogate"
            )
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
