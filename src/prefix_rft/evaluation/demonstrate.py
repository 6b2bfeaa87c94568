"""A teacher's right answers to the rows that a recipe trains on, as demonstrations.

The teacher is another model, or the recipe's own, and may be told the gold answer of each row. What
is kept are texts: they become ids with the tokenizer and the template of the model that is trained
on them, so the teacher's may be others. Samples are drawn, stored and gone on with as those of
:mod:`.collect`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefix_rft.core.teacher import Teacher, phrases, quotes
from prefix_rft.data import Renderer
from prefix_rft.data.demonstrations import TOO_LONG, USABLE, usable_or_why
from prefix_rft.engines.setup import Setup
from prefix_rft.evaluation.collect import lines_of, policy_renderer, sampled_rows
from prefix_rft.evaluation.folder import begun
from prefix_rft.evaluation.samples import Request, Sample
from prefix_rft.evaluation.start import train_rows
from prefix_rft.evaluation.told import told_places
from prefix_rft.support.errors import UserError

QUOTES = "with the sentence that told the teacher"
"""Why a right text is left out that has a sentence of the template in it; the other reasons are
those for which training drops a demonstration."""


@dataclass(frozen=True)
class Demonstrations:
    """What a teacher has shown.

    Attributes:
        rows: the rows that the teacher was asked.
        untold: rows that it was not, since there is nothing to tell it of them.
        shown: rows with a demonstration.
        demonstrations: texts that were kept.
        length: their mean length, in tokens of the model that is to be trained, EOS included.
        samples: samples of all rows.
        right: those that are correct and came to their end.
        truncated: those that ran into the length limit, of which none is kept.
        left_out: right ones that are of no use, by what is wrong with them.
        sampled: tokens that were sampled.
        prefilled: prompt tokens that were read, see :func:`.samples.prefilled`.
    """

    rows: int
    untold: int
    shown: int
    demonstrations: int
    length: float
    samples: int
    right: int
    truncated: int
    sampled: int
    prefilled: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def demonstrate(
    setup: Setup,
    teacher: str,
    told: Teacher | None,
    request: Request,
    keep: int,
    limit: int | None,
    others: bool,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> tuple[str, Demonstrations]:
    """Have a teacher answer the rows that a recipe trains on, and keep what is right.

    Args:
        setup: the recipe.
        teacher: the folder or the name of the teacher's model.
        told: what it is told beside the rows' prompts; None is nothing.
        request: how to sample; the length and the template's arguments are the recipe's.
        keep: the most demonstrations of a row, which are the first different ones.
        limit: the first N rows only.
        others: rows without a demonstration are written too, with those that they have.
        folder: the folder of the samples.
        progress: called with a job's name, the rows done, and those to do.

    Returns:
        The lines of the file of rows, and what is in them.

    Raises:
        UserError: the recipe cannot be used, nothing was right, or the folder holds other samples.
    """
    rows_of = train_rows(setup, limit)
    rows = rows_of.rows()
    places = told_places(rows, told) if told else range(len(rows))
    found = sampled_rows(setup, teacher, replace(rows_of, told=told), request, folder, progress)
    sieve = Sieve(
        policy_renderer(setup, rows[0]["prompt"], begun(folder)),
        setup.args.max_completion_length,
        not isinstance(rows[0]["prompt"], str),
        phrases(told.template) if told else (),
    )
    kept: list[list[str]] = [[] for _ in rows]
    for place, problem in zip(places, found.problems, strict=True):
        kept[place] = sieve.of(problem.samples, keep, found.render)
    samples = [s for p in found.problems for s in p.samples]
    right = sum(s.correct and not s.truncated for s in samples)
    if not sieve.lengths:
        but = "".join(f"; {n} left out: {why}" for why, n in sieve.left_out.items())
        raise UserError(
            f"nothing was shown: {right} of {len(samples)} samples of {len(places)} rows were right"
            f"{but}: sample more, or give another --teacher"
        )
    told_of = Demonstrations(
        rows=len(places),
        untold=len(rows) - len(places),
        shown=sum(map(bool, kept)),
        demonstrations=len(sieve.lengths),
        length=sum(sieve.lengths) / len(sieve.lengths),
        samples=len(samples),
        right=right,
        truncated=sum(s.truncated for s in samples),
        sampled=found.tokens,
        prefilled=found.prefilled,
        left_out=dict(sieve.left_out),
    )
    return "".join(lines_of(rows, kept, others)), told_of


class Sieve:
    """Keeps the demonstrations of rows, and counts why right texts are none.

    Args:
        policy: how the model that is to be trained reads texts.
        budget: the longest demonstration that it is trained on, in its tokens.
        conversation: prompts are conversations.
        said: phrases that no demonstration may have in it.

    Attributes:
        lengths: the lengths of what was kept, in the tokens of that model.
        left_out: right texts that were left out, by what is wrong with them.
    """

    def __init__(
        self, policy: Renderer, budget: int, conversation: bool, said: Sequence[str]
    ) -> None:
        self.policy, self.budget, self.conversation = policy, budget, conversation
        self.said = said
        self.lengths: list[int] = []
        self.left_out: Counter[str] = Counter()

    def of(self, samples: Sequence[Sample], keep: int, teacher: Renderer) -> list[str]:
        """The first different texts that are right, came to their end and can be trained on.

        Args:
            samples: the samples of a row.
            keep: the most texts.
            teacher: how the model was given prompts whose samples these are.
        """
        kept: list[str] = []
        for sample in samples:
            if not sample.correct or sample.truncated:
                continue
            text = sample.text
            if self.conversation:
                text = teacher.with_opened_think(text)
            ids = self.policy.demonstrations([text], self.conversation)[0]
            why = usable_or_why(ids, text, self.policy, self.budget)
            if quotes(text, self.said):
                self.left_out[QUOTES] += 1
            elif why != USABLE:
                self.left_out[f"longer than {self.budget} tokens" if why == TOO_LONG else why] += 1
            elif text not in kept and len(kept) < keep:
                kept.append(text)
                self.lengths.append(len(ids))
        return kept
