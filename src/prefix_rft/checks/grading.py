"""The demonstrations of a check before their graders, and what a run would keep of the rows.

What is graded is what training grades: the text of a demonstration's ids. Golds are judged as the
start of a run judges them, so that the rows and demonstrations that it drops are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from prefix_rft.checks.findings import Findings
from prefix_rft.data.files import Row
from prefix_rft.engines.setup import Setup
from prefix_rft.rewards import Verdict, grade_texts, missing_columns
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.golds import UNUSABLE
from prefix_rft.rewards.verdict import CORRECT, ERROR, GOLD_UNPARSEABLE, TIMEOUT


@dataclass(frozen=True)
class Item:
    """A row, and one of its demonstrations as graders see it.

    Attributes:
        row: the row as it stands in the data.
        values: its columns.
        text: the demonstration's text; empty where the gold answer is judged alone.
        ids: the demonstration's tokens; None where there is none.
    """

    row: Row
    values: dict[str, Any]
    text: str = ""
    ids: list[int] | None = None


@dataclass
class Kept:
    """What a run keeps.

    Attributes:
        rows: the rows whose gold answers can be read.
        demonstrations: the number of demonstrations in these rows.
        with_demonstration: rows that have one.
    """

    rows: int = 0
    demonstrations: int = 0
    with_demonstration: int = 0


@dataclass(frozen=True)
class Verdicts:
    """Of one reward on the items of a batch; ``golds``: a run asks it about golds beforehand."""

    name: str
    golds: bool
    items: Sequence[Item]
    verdicts: Sequence[Verdict]


@dataclass
class Grading:
    """Grades batch after batch in a thread of its own, while the next one is read.

    Attributes:
        setup: the resolved recipe.
        findings: taken in by them.
        graders: one thread.
        label: what to call a row.
        training: rows to train on; of others, the demonstrations are not used.
        limit: the first N demonstrations are graded; all by default.
        counts: demonstrations by status, for each reward.
        kept: so far.
    """

    setup: Setup
    findings: Findings
    graders: ThreadPoolExecutor
    label: Callable[[Row], str]
    training: bool
    limit: int | None
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    graded: int = 0
    under_way: tuple[Future[list[Verdicts]], Sequence[Item], Sequence[Row]] | None = None

    def submit(self, rows: Sequence[Item], demonstrations: Sequence[Item]) -> None:
        """Take the verdicts that are under way, then send these on theirs."""
        self.take()
        work = self.graders.submit(self._grade, rows, demonstrations)
        self.under_way = (work, demonstrations, [item.row for item in rows])

    def _grade(self, rows: Sequence[Item], demonstrations: Sequence[Item]) -> list[Verdicts]:
        """Each demonstration; and the gold answer alone, where nothing else has shown it fine."""
        if not rows:
            return []
        having = {id(item.row) for item in demonstrations}
        if self.limit is not None:
            demonstrations = demonstrations[: max(0, self.limit - self.graded)]
            self.graded += len(demonstrations)
        verdicts = []
        for reward in self.setup.rewards:
            if missing_columns([reward], rows[0].values):
                continue  # said once, for all rows
            judged = self._verdicts(reward, demonstrations)
            if judged.golds:
                alone = [item for item in rows if id(item.row) not in having]
                doubtful = {
                    id(item.row)
                    for item, verdict in zip(demonstrations, judged.verdicts, strict=True)
                    if verdict.status in (TIMEOUT, ERROR)
                }
                alone += [item for item in rows if id(item.row) in doubtful]
                golds = self._verdicts(reward, alone)
                judged = replace(
                    judged,
                    items=[*judged.items, *golds.items],
                    verdicts=[*judged.verdicts, *golds.verdicts],
                )
            if judged.items:
                verdicts.append(judged)
        return verdicts

    @staticmethod
    def _verdicts(reward: Any, items: Sequence[Item]) -> Verdicts:
        verdicts: list[Verdict] = []
        if items:
            texts, ids = [i.text for i in items], [i.ids or [] for i in items]
            verdicts = grade_texts(reward, [i.values for i in items], texts, ids)
        golds = bool(getattr(reward, "tests_gold", False))
        return Verdicts(name_of(reward), golds, items, verdicts)

    def take(self) -> None:
        """Wait for the verdicts that are under way, and look at them."""
        if self.under_way is None:
            return
        work, demonstrations, rows = self.under_way
        self.under_way = None
        unreadable: set[int] = set()
        correct: Counter[int] = Counter()
        for judged in work.result():
            counts = self.counts.setdefault(judged.name, Counter())
            first = judged.name == name_of(self.setup.rewards[0])
            for item, verdict in zip(judged.items, judged.verdicts, strict=True):
                demonstration = item.ids is not None
                counts[verdict.status] += demonstration
                bad = UNUSABLE if not demonstration else (GOLD_UNPARSEABLE,)
                if judged.golds and verdict.status in bad:
                    unreadable.add(id(item.row))
                correct[id(item.row)] += first and demonstration and verdict.status == CORRECT
                self._look(judged.name, item, verdict)
        self._keep(demonstrations, rows, unreadable, correct)

    def _keep(
        self,
        demonstrations: Sequence[Item],
        rows: Sequence[Row],
        unreadable: set[int],
        correct: Counter[int],
    ) -> None:
        """Count what a run keeps of a batch."""
        of_row = Counter(id(item.row) for item in demonstrations)
        if self.setup.recipe.only_correct_demonstrations and self.setup.rewards:
            of_row = correct
        # Only then does a run judge golds before it starts.
        drops = self.setup.method.samples and self.setup.engine.DROPS_UNREADABLE
        usable = [id(r) for r in rows if not (drops and id(r) in unreadable)]
        self.kept.rows += len(usable)
        self.kept.demonstrations += sum(of_row[r] for r in usable)
        self.kept.with_demonstration += sum(of_row[r] > 0 for r in usable)

    def _look(self, name: str, item: Item, verdict: Verdict) -> None:
        demonstration, row = item.ids is not None, self.label(item.row)
        if verdict.status == GOLD_UNPARSEABLE:
            self.findings.add(
                f"'{name}' cannot read the gold answer",
                "mend the answer, or use another reward for such rows",
                row,
                verdict.detail,
            )
        elif verdict.status in (TIMEOUT, ERROR) and not demonstration:
            self.findings.add(
                f"'{name}' cannot grade the row: {verdict.status}",
                "mend the grader or the row",
                row,
                verdict.detail,
            )
        elif demonstration and (verdict.reward is None or verdict.reward <= 0):
            self._rejected(name, row, verdict)

    def _rejected(self, name: str, row: str, verdict: Verdict) -> None:
        first = name == name_of(self.setup.rewards[0])
        dropped = first and self.setup.recipe.only_correct_demonstrations
        fix = "mend the row, or set only_correct_demonstrations: true"
        if dropped:
            fix = "none is needed, only_correct_demonstrations drops it"
        elif verdict.status in (TIMEOUT, ERROR):
            fix = "mend the grader"
        self.findings.add(
            f"a demonstration is '{verdict.status}' to its own grader '{name}'",
            fix,
            row,
            verdict.detail,
            self.training and not dropped,
        )
