"""What becomes of a row's texts on their way through the tokenizer, said of each row of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefix_rft.checks.findings import Findings
from prefix_rft.data import Renderer
from prefix_rft.data.pictures import texts_of
from prefix_rft.data.round_trip import change, unknown_part
from prefix_rft.data.shapes import RowShape
from prefix_rft.data.stringified import TEXTS, stringified

EXAMPLE_LENGTH = 40


@dataclass
class Texts:
    """Looks at the texts of one source.

    Attributes:
        render: what makes ids of them.
        findings: taken in by it.
        training: they are to be trained on.
    """

    render: Renderer
    findings: Findings
    training: bool

    @cached_property
    def names(self) -> dict[int, str]:
        """Control tokens as they would be typed."""
        ids = sorted(self.render.markers)
        names: Any = self.render.tokenizer.convert_ids_to_tokens(ids)
        return dict(zip(ids, names, strict=True))

    def prompt(self, row: str, prompt: Any, ids: list[int]) -> None:
        """What becomes of a prompt's characters and of control tokens in it."""
        texts = [prompt] if isinstance(prompt, str) else list(texts_of(prompt))
        if held := [i for i, name in self.names.items() if any(name in t for t in texts)]:
            self.findings.add(
                "the prompt holds control tokens, which the model is sent as such, not as text",
                "take them out of the data, unless the prompt is meant to hold whole turns",
                row,
                self.render.names(held),
                serious=not isinstance(prompt, str),  # a text may be rendered already
            )
        whole = prompt if isinstance(prompt, str) else self.render.text(prompt)
        if part := unknown_part(self.render, whole, ids):
            self.findings.add(
                "the tokenizer does not know a character of the prompt: the model cannot see it",
                "write it otherwise, or use a model whose tokenizer knows it",
                row,
                repr(part),
                serious=False,
            )

    def demonstration(self, row: str, text: str, ids: list[int]) -> None:
        """What becomes of a demonstration's characters and of control tokens in it."""
        if held := self.render.markers.intersection(ids[:-1]):
            self.findings.add(
                "a demonstration holds control tokens, which are trained as such, not as text",
                "take them out of the data",
                row,
                self.render.names(held),
                serious=self.training,
            )
        if part := unknown_part(self.render, text, ids):
            self.findings.add(
                "the tokenizer does not know a character of a demonstration: the unknown token is "
                "trained, and graded, in its place",
                "write it otherwise, or use a model whose tokenizer knows it",
                row,
                repr(part),
                serious=self.training,
            )
        elif changed := change(self.render, text, ids):
            self.findings.add(
                "the tokenizer changes a demonstration: the changed text is trained and graded",
                "none is needed if the verdicts are right",
                row,
                changed,
                serious=False,
            )

    def cells(self, row: str, values: Mapping[str, Any], shape: RowShape) -> None:
        """Cells that are the text of a list."""
        cell = values.get(shape.demonstration or "")
        if stringified(cell) == TEXTS:
            self.findings.add(
                f"column '{shape.demonstration}': the demonstration is the text of a list of "
                "texts, and is trained as it is written",
                "read it with json.loads or ast.literal_eval, and write the list; if the text is "
                "meant, make it a list of one",
                row,
                repr(cell)[:EXAMPLE_LENGTH],
                serious=self.training,
            )
        answer = values.get(shape.answer or "")
        if stringified(answer):
            self.findings.add(
                f"column '{shape.answer}': the answer is the text of a list",
                "write the value itself, if there is only one",
                row,
                repr(answer)[:EXAMPLE_LENGTH],
                serious=False,
            )
