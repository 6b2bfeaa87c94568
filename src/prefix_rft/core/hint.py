"""A demonstration's part as a hint in the prompt, in place of a prefix of the answer.

What gives the answer away can be masked. SMEPO (arXiv 2605.25198) shows whole demonstrations so,
numbers or code blocks masked; QuestA (arXiv 2507.13266) and POPE (arXiv 2601.18779) unmasked parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefix_rft.support.errors import UserError

TEMPLATE = "{prompt}\n\nHere is an example solution, or its beginning:\n{hint}\n"
NUMBER, CODE = "[NUMBER]", "[CODE]"

# Arguments of these hold no braces: the innermost go first, and what is left is looked at again.
_LATEX = re.compile(
    r"\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\\sqrt\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}"
)
# A number that names a place stays; a fraction or a percentage is one number.
_NUMBER = re.compile(
    r"\b(?P<place>(?:step|case|part|lemma|theorem|equation|section|example)\s+\(?\d+)"
    r"|\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?(?:\s?\\?%)?",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def mask_numbers(text: str) -> str:
    """A text whose numbers, fractions, percentages and roots are ``[NUMBER]``.

    Those behind words such as step or case stay, which number the parts of a text. Signs stay.
    """
    before = None
    while before != text:
        before, text = text, _LATEX.sub(NUMBER, text)
    return _NUMBER.sub(lambda m: m[0] if m["place"] else NUMBER, text)


def mask_code(text: str) -> str:
    """A text whose fenced blocks are ``[CODE]``, also one that the text ends inside of."""
    return _BLOCK.sub(CODE, text)


MASKS: dict[str, Callable[[str], str]] = {"numbers": mask_numbers, "code": mask_code}


@dataclass(frozen=True)
class Hint:
    """How a part of a demonstration is written into a prompt.

    Attributes:
        template: a text with ``{prompt}`` and ``{hint}``.
        mask: what is made of the hint's text before; None for nothing.
    """

    template: str = TEMPLATE
    mask: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        for name in ("{prompt}", "{hint}"):
            if self.template.count(name) != 1:
                raise UserError(
                    f"a hint's template needs {name} once, got {self.template!r}: "
                    f"for example {TEMPLATE!r}"
                )

    def write(self, prompt: str, text: str) -> str:
        """The prompt with a hint.

        Args:
            prompt: the text of the prompt, of its last message in a conversation.
            text: the demonstration's part.

        Raises:
            UserError: the mask gave no text.
        """
        hint = text if self.mask is None else self.mask(text)
        if not isinstance(hint, str):
            raise UserError(f"the mask of a hint gave no text, but {type(hint).__name__}")
        values = {"{prompt}": prompt, "{hint}": hint}
        return re.sub(r"\{(?:prompt|hint)\}", lambda m: values[m[0]], self.template)


def with_hint(prompt: Any, text: str, hint: Hint) -> Any:
    """A prompt, a text or messages, with a part of a demonstration in it.

    Args:
        prompt: the prompt; it stays as it is.
        text: the part of the demonstration.
        hint: how it is written.

    Raises:
        UserError: the last message is no text, or the mask gave none.
    """
    return in_last_text(prompt, lambda asked: hint.write(asked, text))


def in_last_text(prompt: Any, write: Callable[[str], str]) -> Any:
    """A prompt, a text or messages, whose last text is another one.

    Args:
        prompt: the prompt; it stays as it is.
        write: makes the other text of the one that is there.

    Raises:
        UserError: the last message is no text.
    """
    if isinstance(prompt, str):
        return write(prompt)
    *before, last = prompt
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": write(content)}]
    # Beside places for pictures: the last text is where the question is.
    at = [i for i, block in enumerate(content) if block.get("text") is not None]
    if not at:
        raise UserError("a hint is written into a text, but the prompt's last message has none")
    written = {**content[at[-1]], "text": write(content[at[-1]]["text"])}
    return [*before, {**last, "content": [*content[: at[-1]], written, *content[at[-1] + 1 :]]}]
