"""Groups of rollouts as the template shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from prefix_rft.report.collect import Collected
from prefix_rft.report.samples import LONGEST, Excerpt, ShownGroup, ShownRollout
from prefix_rft.report.text import cut, more, number, signed
from prefix_rft.runs.rollouts import HYBRID
from prefix_rft.runs.token_texts import KEPT, PREFIX, SAMPLED, Part, marked

CHARACTERS = 500_000
"""Of all texts together, about; a page with many runs shows less of each."""

SHORTEST = 200
LONGEST_DETAIL = 160
MARKS = {PREFIX: "prefix", KEPT: "kept", SAMPLED: ""}
"""The page's class of each part of a completion."""


def text_limit(runs: Sequence[Collected]) -> int:
    """How many characters of each text are shown, such that all together stay in bounds."""
    texts = sum(len(g.samples) + 1 for run in runs for g in _all(run))
    return max(SHORTEST, min(LONGEST, CHARACTERS // max(1, texts)))


def _all(run: Collected) -> list[ShownGroup]:
    over_training = [g for groups in run.over_training.values() for g in groups]
    return [*run.worst.values(), *run.best.values(), *over_training]


def categories(
    run: Collected, tokenizer: Tokenizer | None, limit: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings and groups: the worst, the best, and some over training."""
    shown = [
        ("Worst groups, by mean on-policy reward", list(run.worst.values())),
        ("Best groups, by mean on-policy reward", list(run.best.values())),
    ]
    shown += [(f"From the rollouts at step {s:,}", g) for s, g in run.over_training.items()]
    return [(h, [view(g, tokenizer, limit) for g in groups]) for h, groups in shown if groups]


def view(group: ShownGroup, tokenizer: Tokenizer | None, limit: int) -> dict[str, Any]:
    """A group in words."""
    prompt, left = _cut(group.prompt, limit)
    return {
        "step": f"{group.step:,}",
        "number": group.number,
        "example": group.example,
        "images": ", ".join(cut(name, LONGEST_DETAIL)[0] for name in group.images),
        "attempt": group.attempt,
        "policy": number(group.policy_reward),
        "hybrid": None if group.hybrid_reward is None else number(group.hybrid_reward),
        "prompt": prompt,
        "prompt_more": more(left),
        "rows": [row(sample, tokenizer, limit) for sample in group.samples],
        "rows_more": group.rows - len(group.samples),
    }


def row(sample: ShownRollout, tokenizer: Tokenizer | None, limit: int) -> dict[str, Any]:
    """A rollout in words."""
    completion = sample.completion
    parts = marked(tokenizer, completion, limit)
    shown, left = cut_parts(
        [(SAMPLED, completion.text)] if parts is None else parts, limit, completion.characters
    )
    return {
        "number": sample.row,
        "kind": sample.origin,
        "tokens": f"{completion.tokens:,}",
        "prefix": f"{sample.prefix_length:,}"
        if sample.origin == HYBRID and sample.prefix_length
        else None,
        "hint": f"{sample.hint_length:,}" if sample.hint_length else None,
        "kept": None if completion.kept is None else f"{len(completion.kept):,}",
        "reward": number(sample.reward),
        "advantage": signed(sample.advantage),
        "verdicts": [(g, status, cut(d, LONGEST_DETAIL)[0]) for g, status, d in sample.verdicts],
        "truncated": sample.truncated,
        "segments": [(MARKS[state], text) for state, text in shown if text],
        "more": more(left),
        "unmarked": parts is None,
    }


def cut_parts(parts: Sequence[Part], limit: int, characters: int) -> tuple[list[Part], int]:
    """The first parts up to a limit, and how many characters of the whole are left out.

    Args:
        parts: a text's parts, or its first ones.
        limit: the characters to keep at most; fewer where they take too much of the page.
        characters: the length of the whole text.
    """
    shown, _ = cut("".join(text for _, text in parts), limit)
    room = len(shown)
    result: list[Part] = []
    for state, text in parts:
        if room <= 0:
            break
        result.append((state, text[:room]))
        room -= len(result[-1][1])
    return result, characters - len(shown)


def _cut(text: Excerpt, limit: int) -> tuple[str, int]:
    return cut(text.start, limit, text.characters)
