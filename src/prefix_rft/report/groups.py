"""Groups of rollouts as the template shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from prefix_rft.report.collect import Collected
from prefix_rft.report.marks import cut_segments, segments
from prefix_rft.report.samples import LONGEST, Group, Sample, Text
from prefix_rft.report.text import cut, more, number, signed
from prefix_rft.runs.rollouts import HYBRID

CHARACTERS = 500_000
"""Of all texts together, about; a page with many runs shows less of each."""

SHORTEST = 200
LONGEST_DETAIL = 160


def text_limit(runs: Sequence[Collected]) -> int:
    """How many characters of each text are shown, such that all together stay in bounds."""
    texts = sum(len(g.samples) + 1 for run in runs for g in _all(run))
    return max(SHORTEST, min(LONGEST, CHARACTERS // max(1, texts)))


def _all(run: Collected) -> list[Group]:
    over_training = [g for groups in run.over_training.values() for g in groups]
    return [*run.worst.values(), *run.best.values(), *over_training]


def categories(
    run: Collected, tokenizer: Tokenizer | None, limit: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings and groups: the worst, the best, and some over training."""
    found = [
        ("Worst groups, by mean on-policy reward", list(run.worst.values())),
        ("Best groups, by mean on-policy reward", list(run.best.values())),
    ]
    found += [(f"From the rollouts at step {s:,}", g) for s, g in run.over_training.items()]
    return [(h, [view(g, tokenizer, limit) for g in groups]) for h, groups in found if groups]


def view(group: Group, tokenizer: Tokenizer | None, limit: int) -> dict[str, Any]:
    """A group in words."""
    prompt, left = _cut(group.prompt, limit)
    return {
        "step": f"{group.step:,}",
        "number": group.number,
        "example": group.example,
        "attempt": group.attempt,
        "policy": number(group.policy_reward),
        "hybrid": None if group.hybrid_reward is None else number(group.hybrid_reward),
        "prompt": prompt,
        "prompt_more": more(left),
        "rows": [row(sample, tokenizer, limit) for sample in group.samples],
        "rows_more": group.rows - len(group.samples),
    }


def row(sample: Sample, tokenizer: Tokenizer | None, limit: int) -> dict[str, Any]:
    """A rollout in words."""
    parts = segments(sample, tokenizer, limit)
    marked = parts is not None
    shown, left = cut_segments(
        [("", sample.text.start)] if parts is None else parts, limit, sample.text.characters
    )
    return {
        "number": sample.row,
        "kind": sample.kind,
        "tokens": f"{sample.tokens:,}",
        "prefix": f"{sample.prefix_length:,}" if sample.kind == HYBRID else None,
        "kept": None if sample.kept is None else f"{len(sample.kept):,}",
        "reward": number(sample.reward),
        "advantage": signed(sample.advantage),
        "verdicts": [(g, status, cut(d, LONGEST_DETAIL)[0]) for g, status, d in sample.verdicts],
        "truncated": sample.truncated,
        "segments": shown,
        "more": more(left),
        "unmarked": not marked and bool(sample.prefix_length),
    }


def _cut(text: Text, limit: int) -> tuple[str, int]:
    return cut(text.start, limit, text.characters)
