r"""Which part of a text is its answer: behind the thinking, the last ``\boxed{}``, no Markdown."""

from __future__ import annotations

import re
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
BARE_BOX = re.compile(r"[-+]?(?:\\[a-zA-Z]+|[^\s{}$\\]+)")


def opens_thinking(prompt: Any) -> bool:
    """Whether a prompt, a text or messages, ends inside a think block that it has opened."""
    if isinstance(prompt, (list, tuple)):
        prompt = prompt[-1].get("content") if prompt else None
    if isinstance(prompt, (list, tuple)):  # a message with places for pictures
        prompt = prompt[-1].get("text") if prompt else None
    return isinstance(prompt, str) and prompt.rstrip().endswith(OPEN)


def behind_thinking(text: str, opened: bool = False) -> str | None:
    """What stands behind the last ``</think>``; None for a text that ends inside its thinking.

    Args:
        text: a completion.
        opened: its prompt has opened the thinking already.
    """
    _, closed, rest = text.rpartition(CLOSE)
    if OPEN in rest or (opened and not closed):
        return None
    return rest


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``; empty if the text ends in it, None without one."""
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] == "{":
        end = closing(text, start)
        return "" if end is None else text[start + 1 : end].strip()
    bare = BARE_BOX.match(text, start)  # \boxed 7
    return bare.group() if bare else ""


def closing(text: str, start: int) -> int | None:
    """Where the brace that opens at ``start`` is closed; escaped braces are none."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return None


# Two stars between digits are a power, and one is a product: no emphasis.
EMPHASIS = (
    re.compile(r"(?<![\w)\]}*\\])(\*{2,3})(?=[^\s*])([^\n]{0,200}?[^\s*])\1(?![\w(*])"),
    re.compile(r"(?<![\w\\])(__)(?=[^\s_])([^\n]{0,200}?[^\s_])\1(?!\w)"),
    re.compile(r"(?<![\w)\]}*\\^])(\*)(?=[^\s*])([^*\n]{0,200}[^\s*])\1(?![\w(*])"),
    re.compile(r"(?<![\w)\]}\\])(_)(?=[^\s_])([^_\n]{0,200}[^\s_])\1(?![\w{])"),
)
TAGS = re.compile(r"</?(?:b|strong|em|i|u|code|mark|center|p|span)>|^#{1,6}\s+", re.MULTILINE)
ANSWER_TAG = re.compile(r"<answer>(.{0,2000}?)</answer>", re.DOTALL)
BOLD = re.compile(
    r"\\(?:textbf|textit|mathbf|mathit|boldsymbol|bm|emph|underline|mathsf|textsf|texttt)\s*(?=\{)"
    r"|\\textcolor\s*\{\w+\}\s*(?=\{)"
)
ENDS_MARKED = re.compile(
    r"(?:^|[\s(=:])(?:[*_`$]|<(?:b|strong|em|mark)>|\\[(\[]){0,4}"
    r"(?:\*{2,3}|__|`|<(?:b|strong|mark)>|\\(?:textbf|mathbf|boldsymbol|bm)\s*\{)"
    r"(?P<answer>[^*`\n<]+?)"
    r"(?:\*{2,3}|__|`|</(?:b|strong|mark)>|\})[\s.!*_`$)\]\\]*$"
)
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")


def without_markdown(text: str) -> str:
    """The text without emphasis, code ticks, headings and the like around its words."""
    text = ANSWER_TAG.sub(r"\nAnswer: \1\n", text)
    text = TAGS.sub("", text).replace("`", "")
    for form in EMPHASIS:
        text = form.sub(r"\2", text)
    return re.sub(r"\n\s*\n", "\n", unbold(text))


ENCLOSED = re.compile(
    r"(?s)(\*{1,3}|_{1,3}|`{1,3}|\$\$?)(?=\S)(?!.*\1.+\1)(.+?)(?<=\S)\1"
    r"|\\(?:boxed|textbf|mathbf|boldsymbol|text)\{([^{}]+)\}"
    r"|\\\((.+?)\\\)|<answer>(.+?)</answer>"
)


def enclosed(text: str) -> str | None:
    """What Markdown or LaTeX encloses as a whole; None where nothing does."""
    found = ENCLOSED.fullmatch(text.strip())
    return None if found is None else next(g for g in found.groups()[1:] if g is not None)


def unbold(text: str) -> str:
    r"""The text with the content of ``\textbf{}`` and its like in their place."""
    while found := BOLD.search(text):
        end = closing(text, found.end())
        if end is None:
            return text
        text = text[: found.start()] + text[found.end() + 1 : end] + text[end + 1 :]
    return text


def emphasised_end(text: str) -> str | None:
    """An expression that is written in bold or as code and ends the text; no words."""
    found = ENDS_MARKED.search(text.strip().rpartition("\n")[2][-300:])
    answer = found["answer"].strip().rstrip(".") if found else ""
    return answer if re.search(r"\d|\\", answer) and not WORD.search(answer) else None
