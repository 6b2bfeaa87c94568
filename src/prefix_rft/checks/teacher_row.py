"""A teacher's row, token by token: its prompt beside the policy's, and the policy's answer."""

from __future__ import annotations

from collections.abc import Sequence

from prefix_rft.checks.inspect import (
    ANSWER,
    LIKELIER,
    NOTABLE,
    PROMPT,
    SEEN,
    UNLIKELIER,
    Token,
)


def teacher_row(
    asked: Sequence[int], shown: Sequence[int], said: Sequence[int], ratios: Sequence[float]
) -> list[Token]:
    """The tokens of a teacher's row, with what becomes of each.

    Args:
        asked: ids of the policy's prompt.
        shown: ids of the teacher's prompt.
        said: ids of the policy's answer; none where nothing was sampled.
        ratios: ``log q - log p`` of each of them.
    """
    row = [
        Token(i, SEEN if new else PROMPT)
        for i, new in zip(shown, beside(asked, shown), strict=True)
    ]
    for i, ratio in zip(said, ratios, strict=True):
        role = LIKELIER if ratio > NOTABLE else UNLIKELIER if ratio < -NOTABLE else ANSWER
        row.append(Token(i, role))
    return row


def beside(asked: Sequence[int], shown: Sequence[int]) -> list[bool]:
    """Which tokens of a teacher's prompt are none of the policy's.

    The policy's may stand in it in three parts: its beginning, its end, and what is left of it in
    one piece between them.

    Args:
        asked: ids of the policy's prompt.
        shown: ids of the teacher's.
    """
    most = min(len(asked), len(shown))
    first = next((n for n in range(most) if asked[n] != shown[n]), most)
    last = next((n for n in range(most - first) if asked[-1 - n] != shown[-1 - n]), most - first)
    new = [first <= n < len(shown) - last for n in range(len(shown))]
    rest = list(asked[first : len(asked) - last])
    for at in range(first, len(shown) - last - len(rest) + 1) if rest else ():
        if list(shown[at : at + len(rest)]) == rest:
            new[at : at + len(rest)] = [False] * len(rest)
            break
    return new
