"""``prefix-rft check``: every row against its template, its lengths and its own grader.

Rows are read one batch at a time and forgotten: a file of any size takes the same memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prefix_rft.checks.findings import Findings
from prefix_rft.checks.grading import Grading, Item, Kept
from prefix_rft.checks.teaching import Taught
from prefix_rft.checks.texts import Texts
from prefix_rft.data import DataError, Renderer, find_source, read_rows
from prefix_rft.data.demonstrations import (
    EMPTY,
    ENDS_INSIDE,
    PICTURE_INSIDE,
    TOO_LONG,
    USABLE,
    usable_or_why,
)
from prefix_rft.data.files import Row
from prefix_rft.data.pictures import asked, cells
from prefix_rft.data.rows import BATCH, ColumnTypes, batched
from prefix_rft.data.shapes import detect
from prefix_rft.engines.hints import longest_prompt
from prefix_rft.engines.models import give_template
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.rewards import missing_columns


@dataclass
class Checked:
    """What is known about one set of rows.

    Attributes:
        name: the data's name.
        shape: how its columns were understood.
        rows: the number of rows that can be used.
        with_demonstration: rows that have one left.
        prompt_lengths: tokens of each prompt.
        demonstration_lengths: tokens of each demonstration that is kept, EOS included.
        reasons: demonstrations by what becomes of them.
        verdicts: the number of demonstrations by reward and status.
        kept: what a run keeps of all that.
        whole: all rows were looked at.
        prompts: hashes of the prompts with the names of their pictures.
        taught: the rows that teachers teach; None where there is no teacher.
        findings: everything that is wrong or worth a note.
    """

    name: str
    shape: str = ""
    rows: int = 0
    with_demonstration: int = 0
    prompt_lengths: array[int] = field(default_factory=lambda: array("i"))
    demonstration_lengths: array[int] = field(default_factory=lambda: array("i"))
    reasons: Counter[str] = field(default_factory=Counter)
    verdicts: dict[str, Counter[str]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    whole: bool = True
    prompts: set[int] = field(default_factory=set)
    taught: Taught | None = None
    findings: Findings = field(default_factory=Findings)

    def label(self, row: Row) -> str:
        """The row's number, and its file where there are several."""
        if row.source == self.name:
            return str(row.number)
        return f"{row.number} of {row.source.removeprefix('data file ')}"


@dataclass(frozen=True)
class Scope:
    """How much is looked at.

    Attributes:
        rows: the first N rows; all by default.
        graded: the first N demonstrations are graded; all by default.
        training: rows to train on; of others, the demonstrations are not used.
    """

    rows: int | None = None
    graded: int | None = None
    training: bool = True


def check_data(
    setup: Setup,
    data: Any,
    tokenizer: Any,
    eos_ids: tuple[int, ...],
    max_length: int | None,
    graders: ThreadPoolExecutor,
    scope: Scope,
    progress: Callable[[int], None] = lambda rows: None,
) -> Checked:
    """Read rows of ``data`` and look at each.

    Args:
        setup: the resolved recipe.
        data: a recipe's ``train_data`` or ``eval_data``.
        tokenizer: the model's.
        eos_ids: tokens that end a completion.
        max_length: positions that the model has, or None.
        graders: one thread, which must outlive all calls: graders end with the thread that has
            started them.
        scope: how much to look at.
        progress: called with the number of rows done.

    Raises:
        DataError: there is no such data.
    """
    source = find_source(data, setup.recipe.folder)
    checked = Checked(source.name)

    def refuse(error: DataError) -> None:
        checked.findings.add(error.what, row=checked.label(error.row) if error.row else None)

    every = read_rows(source, setup.recipe.reading(setup.args.seed), refuse)
    rows = islice(every, scope.rows)
    checker: RowChecker | None = None
    try:
        for batch in batched(rows, BATCH):
            if checker is None:
                row, values = batch[0]
                checked.shape = str(detect(row))
                plain = give_template(tokenizer, values["prompt"])
                checker = RowChecker(
                    setup, tokenizer, eos_ids, max_length, checked, plain, scope, graders
                )
            checker.at(batch)
            progress(checked.rows)
        checked.whole = next(every, None) is None
    except DataError as error:  # nothing more can be read
        refuse(error)
    if checker is not None:
        checker.end()
    return checked


class RowChecker:
    """One pass over the rows of one source."""

    def __init__(
        self,
        setup: Setup,
        tokenizer: Any,
        eos_ids: tuple[int, ...],
        max_length: int | None,
        checked: Checked,
        plain_template: bool,
        scope: Scope,
        graders: ThreadPoolExecutor,
    ) -> None:
        template = template_kwargs(setup.args, tokenizer)
        self.setup = setup
        self.budget: int = setup.args.max_completion_length
        self.render = Renderer(tokenizer, eos_ids, template)
        self.bos = self.render.tokenizer.bos_token_id
        self.max_length = max_length
        self.found = checked
        self.scope = scope
        self.training = scope.training
        self.findings = checked.findings
        self.grading = Grading(
            setup, checked.findings, graders, checked.label, scope.training, scope.graded
        )
        checked.verdicts, checked.kept = self.grading.counts, self.grading.kept
        self.texts = Texts(self.render, checked.findings, scope.training)
        self.types = ColumnTypes()
        if scope.training and setup.method.teachers and self.render.processor is None:
            checked.taught = Taught(setup, self.render, max_length, checked.findings)
        if plain_template:
            self.findings.add(
                "the tokenizer has no chat template: prompts are plain text with blank lines "
                "between messages",
                serious=False,
            )

    def at(self, batch: list[tuple[Row, dict[str, Any]]]) -> None:
        """Look at some rows."""
        for error in self.types.add(batch):
            self.findings.add(error.what, row=self.found.label(error.row) if error.row else None)
        if self.found.rows == 0 and (self.setup.method.samples or not self.training):
            for fault in missing_columns(self.setup.rewards, batch[0][1]):
                self.findings.add(fault, "add the column, or name it in columns:")
        conversation = isinstance(batch[0][1]["prompt"], list)
        if conversation and self.found.rows == 0 and (fault := self.render.template_fault()):
            self.findings.add(fault)
        batch = self._prompts(batch, conversation)
        kept = self._demonstrations(batch, conversation)
        if self.found.taught is not None:
            own: dict[int, list[list[int]]] = {id(row): [] for row, _ in batch}
            for item in kept:
                own[id(item.row)].append(item.ids or [])
            self.found.taught.at([(self.found.label(r), v, own[id(r)]) for r, v in batch])
        self.found.rows += len(batch)
        # The graders' processes work on this batch while the next one is read and tokenised.
        self.grading.submit([Item(row, values) for row, values in batch], kept)

    def _prompts(self, batch: list[Any], conversation: bool) -> list[Any]:
        """The rows whose prompt the template takes."""
        ids, usable = [], []
        for row, values in batch:
            try:
                ids.append(self._asked(values, conversation))
                usable.append((row, values))
            except DataError as error:
                self.findings.add(error.what, row=self.found.label(row))
        for (row, values), prompt_ids in zip(usable, self._ids(ids, conversation), strict=True):
            self.found.prompts.add(hash(str([values["prompt"], *cells(values)])))
            length = self._asked_with(values, len(prompt_ids))
            self.found.prompt_lengths.append(length)
            self._bos(self.found.label(row), prompt_ids)
            self.texts.prompt(self.found.label(row), values["prompt"], prompt_ids)
            if self.max_length is not None and length + self.budget > self.max_length:
                self.findings.add(
                    f"the prompt and max_completion_length={self.budget} do not fit into the "
                    f"model's {self.max_length} positions",
                    "lower max_completion_length or drop the row",
                    self.found.label(row),
                    f"the prompt has {length} tokens",
                )
        return usable

    def _asked(self, values: Any, conversation: bool) -> Any:
        """A prompt as text, or with its pictures in it as ids."""
        if cells(values) and self.render.processor is None:
            raise DataError("the row has pictures, but the model reads none: use one that does")
        if self.render.processor is not None and conversation:
            return self.render.prompt(asked(values))
        return self.render.text(values["prompt"]) if conversation else values["prompt"]

    def _asked_with(self, values: Any, length: int) -> int:
        """Tokens of the prompt with the longest hint that training may put into it."""
        hint = self.setup.method.planner.hint if self.training else None
        if hint is None:
            return length
        prompt, texts = values["prompt"], values["demonstration"]
        ids = self.render.demonstrations(texts, isinstance(prompt, list))
        pairs = zip(ids, texts, strict=True)
        used = [i for i, t in pairs if usable_or_why(i, t, self.render, self.budget) == USABLE]
        return len(longest_prompt(asked(values), used, hint, self.render))

    def _ids(self, texts: list[Any], conversation: bool) -> list[list[int]]:
        plain = [text for text in texts if isinstance(text, str)]
        made: Any = {"input_ids": []}
        if plain:
            made = self.render.tokenizer(plain, add_special_tokens=not conversation)
        ids = iter(made["input_ids"])
        return [next(ids) if isinstance(text, str) else text for text in texts]

    def _bos(self, row: str, ids: list[int]) -> None:
        if self.bos is None or not self.render.adds_bos:
            return
        number = next((i for i, token in enumerate(ids) if token != self.bos), len(ids))
        if number != 1:
            self.findings.add(
                f"the prompt begins with {number} BOS tokens instead of one",
                "take the BOS out of the text, or let the chat template write it once",
                row,
            )

    def _demonstrations(self, batch: list[Any], conversation: bool) -> list[Item]:
        """The demonstrations that are kept, with their rows."""
        for row, _ in batch:
            self.texts.cells(self.found.label(row), row.values, detect(row))
        all_texts = [(item, t) for item in batch for t in item[1]["demonstration"]]
        ids = self.render.demonstrations([t for _, t in all_texts], conversation)
        read = self.render.completions(ids)
        kept = []
        for ((row, values), text), demo_ids, graded in zip(all_texts, ids, read, strict=True):
            reason = usable_or_why(demo_ids, text, self.render, self.budget)
            self.found.reasons[reason] += 1
            if reason != USABLE:
                self._dropped(reason, self.found.label(row), len(demo_ids))
                continue
            self.found.demonstration_lengths.append(len(demo_ids))
            kept.append(Item(row, values, graded, demo_ids))
            if conversation:
                self._turn(self.found.label(row), values["prompt"], text)
                text = self.render.without_doubled_think(text)
            self.texts.demonstration(self.found.label(row), text, demo_ids)
        self.found.with_demonstration += len({id(item.row) for item in kept})
        return kept

    def _dropped(self, reason: str, row: str, length: int) -> None:
        fixes = {
            TOO_LONG: f"raise max_completion_length above {self.budget}",
            EMPTY: "write null where there is no demonstration",
            ENDS_INSIDE: "take the end-of-sequence text out of it",
            PICTURE_INSIDE: "take the picture's token out of it: a completion is text",
        }
        example = f"{length} tokens" if reason == TOO_LONG else ""
        self.findings.add(
            f"a demonstration is dropped: {reason}", fixes[reason], row, example, False
        )

    def _turn(self, row: str, messages: list[dict[str, Any]], text: str) -> None:
        if fault := self.render.think_fault(text):
            self.findings.add(
                f"a demonstration {fault}",
                "let it hold one <think> ... </think>, counting a tag that the prompt ends with",
                row,
                serious=self.training,
            )
        if self.render.rewrites(messages, text):
            self.findings.add(
                "the chat template would render the demonstration otherwise than it is written; "
                "the tokens trained are those of the text as written",
                row=row,
                serious=False,
            )

    def end(self) -> None:
        """The last verdicts, and findings about all rows together."""
        self.grading.take()
        if self.found.taught is not None:
            self.found.taught.end()
        if not self.training or not self.found.whole:
            return  # nothing to be said of rows that were not seen
        method, kept = self.setup.method, self.found.kept
        limit = self.scope.graded
        ungraded = limit is not None and self.found.reasons[USABLE] > limit
        if self.setup.recipe.only_correct_demonstrations and ungraded:
            return
        if (method.needs_demonstrations or not method.samples) and not kept.demonstrations:
            self.findings.add(
                f"method '{method.name}' needs demonstrations, but no row has one that can be used",
                "name the column in columns: {demonstration: NAME}, or use dr_grpo",
            )
        if method.samples and kept.rows < (prompts := self.setup.prompts_per_generation):
            self.findings.add(
                f"{kept.rows} rows, but one generation takes {prompts} prompts",
                "lower prompts_per_step",
            )
