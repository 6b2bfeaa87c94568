"""What a method is: plain data that says which rows a group has and how each token is trained.

Every method is a sum of streams of one form (L over streams s, tokens t of rows i):

    L = sum_s c_s * (-1/Z_s) * sum_it m_it * w_it * S_s(rho_it, A_i),   rho = exp(logp - old_logp)

A stream names its tokens (``m``), weight (``w``, detached), surrogate (``S``), advantage (``A``),
coefficient (``c``), and the tokens or rows that its normaliser (``Z``) counts. Engines read
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefix_rft.core.advantage import BASELINES
from prefix_rft.core.contrast import Contrast
from prefix_rft.core.parts import About, Clip, Groups, Normaliser, Reference
from prefix_rft.core.planner import Lengthening, OnPolicy, Planner
from prefix_rft.core.schedules import Following
from prefix_rft.core.stream import REGULARISERS, ROLLOUT, Selection, Stream
from prefix_rft.core.teacher import FROM_GROUPS, Teacher
from prefix_rft.support.errors import UserError, choose


@dataclass(frozen=True)
class Method:
    """A post-training method as data. See the module docstring for the objective.

    Attributes:
        name: the name by which recipes call it.
        streams: the terms of the objective.
        rows: the planner that decides where the rows of a group start.
        selection: which prefix tokens keep their advantage; None keeps all.
        baseline: the baseline of the group advantages.
        normaliser: what the sums of the streams are divided by.
        clip: the range of the importance ratio.
        groups: what becomes of a group once its rewards are known.
        contrast: gives the ``sequence`` advantage.
        reference: what the reference policy is for beyond a KL term.
        teachers: who scores the policy's completions for the streams that read a teacher.
        about: what tables and run folders say of the method.

    Raises:
        UserError: parts that do not go together; each part checks itself.
    """

    name: str
    streams: tuple[Stream, ...]
    rows: Planner = OnPolicy()
    selection: Selection | None = None
    baseline: str = "mean"
    normaliser: Normaliser = Normaliser()
    clip: Clip = Clip()
    groups: Groups = Groups()
    contrast: Contrast | None = None
    reference: Reference = Reference()
    teachers: tuple[Teacher, ...] = ()
    about: About = About()

    def __post_init__(self) -> None:
        choose("baseline", self.baseline, BASELINES)
        if not self.streams:
            raise UserError(f"method '{self.name}' has no stream, so it would train nothing")
        if self.contrast is None and any(s.advantage == "sequence" for s in self.streams):
            raise UserError(f"method '{self.name}' has a sequence advantage but no contrast")
        names = [t.name for t in self.teachers]
        heard = {s.teacher for s in self.streams if s.teacher}
        if heard != set(names) or len(names) != len(set(names)):
            raise UserError(
                f"method '{self.name}' has teachers {names}, and its streams read {sorted(heard)}: "
                "each is read, and has a name of its own"
            )
        all_wrong = self.groups.all_wrong
        if self.rows.waits and self.groups.sampled_again:
            raise UserError(
                f"rows of method '{self.name}' wait for one another, so a group is not sampled "
                "again: choose keep or drop for all_wrong and all_right"
            )
        whole = all_wrong == "demonstration" or self.groups.interleave is not None
        if self.rows.hint is not None and (
            whole or self.trains("prefix") or self.trains("demonstration")
        ):
            raise UserError(
                f"method '{self.name}' trains tokens of demonstrations, so these cannot stand in "
                "the prompt: leave out the hint"
            )
        if (all_wrong == "guide") != (self.guide is not None) or (
            self.trains("guided") and self.guide is None
        ):
            raise UserError(
                f"method '{self.name}': all_wrong: guide, and a stream that trains guided tokens "
                "and reads a teacher, go together"
            )
        if self.guide is not None and self.guide.weights != "live":
            raise UserError(
                f"method '{self.name}' samples guided rows from its own weights: use weights: live "
                f"for teacher '{self.guide.name}'"
            )
        if all_wrong == "lengthen" and not self.trains("continuation"):
            raise UserError(
                f"method '{self.name}' trains no continuation, so it cannot lengthen a prefix: "
                "choose another all_wrong"
            )
        if all_wrong in ("drop", "resample") and any(
            s.gate is not None and s.gate[0] < 0.0 for s in self.streams
        ):
            raise UserError(
                f"method '{self.name}' trains on groups that fail, so they cannot be left out: "
                "choose another all_wrong"
            )
        if all_wrong == "demonstration" and not self.trains("demonstration"):
            raise UserError(
                f"method '{self.name}' trains no demonstration, so all_wrong: demonstration has "
                "no effect"
            )

    def trains(self, origin: str) -> bool:
        """Whether a stream, KL and entropy aside, acts on tokens of this origin."""
        return any(origin in s.tokens for s in self.streams if s.surrogate not in REGULARISERS)

    def teacher_of(self, stream: Stream) -> int:
        """Which of the teachers a stream reads."""
        return [t.name for t in self.teachers].index(stream.teacher)

    @property
    def guide(self) -> Teacher | None:
        """The teacher from whose prompt rows of failed groups are sampled; None where none are."""
        guided = [s for s in self.streams if "guided" in s.tokens and s.teacher]
        return self.teachers[self.teacher_of(guided[0])] if guided else None

    @property
    def divergences(self) -> tuple[int, ...]:
        """The streams that are a divergence from a teacher, by their places."""
        return tuple(i for i, s in enumerate(self.streams) if s.divergence is not None)

    @property
    def reads_rewards(self) -> bool:
        """Whether rewards decide anything: an advantage, a gate, or what becomes of a group."""
        own = Groups(attempts=self.groups.attempts, truncated=self.groups.truncated)
        return (
            any(
                (isinstance(s.advantage, str) and s.surrogate not in REGULARISERS)
                or s.gate is not None
                or isinstance(s.coefficient, Following)
                for s in self.streams
            )
            or replace(self.groups, solved_above=0.0) != own
            or self.remembers
            or any(t.shown in FROM_GROUPS for t in self.teachers)
        )

    @property
    def reads_entropy(self) -> bool:
        """Whether a term of the loss reads entropies, or may: a weight is any function."""
        return any(
            s.surrogate == "entropy" or (s.weight is not None and not s.weight.relative)
            for s in self.streams
        )

    @property
    def samples(self) -> bool:
        """Whether the policy samples at all; a pure imitation method does not."""
        return any(origin in ROLLOUT for stream in self.streams for origin in stream.tokens)

    @property
    def needs_demonstrations(self) -> bool:
        """Whether the method is meaningless on data without any demonstration."""
        return self._starts_from_them or any(
            t.shown in ("demonstration", "prefix", "unrelated") and t.context != "column"
            for t in self.teachers
        )

    @property
    def _starts_from_them(self) -> bool:
        """Whether rows start from demonstrations, or are some."""
        return bool(
            (not self.rows.fixed and self.rows.needs_demonstrations)
            or self.rows.num_hybrid
            or self.rows.num_demonstrations
            or self.groups.interleave is not None
            or self.groups.all_wrong in ("lengthen", "demonstration")
        )

    @property
    def planner(self) -> Planner:
        """Where rows start, at first and when a group that failed is sampled again."""
        lengthens = self.groups.all_wrong == "lengthen" and not isinstance(self.rows, Lengthening)
        return Lengthening(self.rows) if lengthens else self.rows

    @property
    def branches(self) -> bool:
        """Whether rows of a group can differ in where they start, or in whether they sample."""
        starts = self._starts_from_them or self.planner.store is not None
        return starts or self.groups.sampled_again

    @property
    def remembers(self) -> bool:
        """Whether anything is remembered of single examples."""
        return (
            self.planner.remembers
            or self.planner.store is not None
            or self.groups.interleave is not None
            or self.contrast is not None
        )

    @property
    def needs_reference(self) -> bool:
        """Whether anything compares with, or samples from, the reference policy."""
        return self.needs_own_reference or any(s.surrogate == "kl" for s in self.streams)

    @property
    def needs_own_reference(self) -> bool:
        """Whether it needs the reference policy for more than a KL term."""
        return (
            self.reference.sampler == "reference"
            or any(s.weight is not None and s.weight.needs_reference for s in self.streams)
            or (self.contrast is not None and self.contrast.needs_reference)
        )

    @property
    def needs_unit_temperature(self) -> bool:
        """Whether a stream reads likelihoods as such: they are those of temperature 1."""
        return any(
            (s.weight is not None and not s.weight.relative)
            or (
                s.surrogate in ("logp", "likelihood")
                and set(s.tokens) & {"prefix", "demonstration"}
            )
            for s in self.streams
        )
