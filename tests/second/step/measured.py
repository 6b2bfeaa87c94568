"""What the measurements of a run must be, from its rollout files and recorded weights.

Entropies, gradients and counts are computed anew, one unpadded row at a time.
"""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from second.step.formulas import prefix_rft_parts
from second.step.trl_run import scores
from second.step.update import Row, Update, selected

Line = dict[str, Any]
SAME = 2e-6
"""Entropies of one context are as far apart in two forwards, in float32 nats."""


def read(folder: Path, kind: str) -> dict[int, list[Line]]:
    """The lines of the files of a kind (``step`` or ``kept``) by the number in their names."""
    return {
        int(p.stem.removeprefix(f"{kind}_")): [json.loads(x) for x in p.read_text().splitlines()]
        for p in sorted((folder / "rollouts").glob(f"{kind}_*.jsonl"))
    }


def row_of(line: Line) -> Row:
    """A rollout as a plain row."""
    return Row(
        line["prompt_ids"],
        line["completion_ids"],
        0 if line["demonstration"] else line["prefix_length"],
        line["demonstration"],
        math.nan if line["reward"] is None else line["reward"],
        line["group"],
    )


def identity(row: Row) -> tuple[tuple[int, ...], ...]:
    """What a row is told by: its ids."""
    return tuple(row.prompt), tuple(row.completion), (row.prefix,)


def hybrid(line: Line) -> bool:
    return line["prefix_length"] > 0 and not line["demonstration"]


def check_kept(
    folder: Path,
    weights: list[dict[str, torch.Tensor]],
    rows: list[list[Row]],
    passes: int = 1,
    temperature: float = 1.0,
) -> int:
    """Every kept file against the top fifth by entropy; the number of rows that kept something.

    ``weights`` and ``rows`` are those of each update; the file of a generation must hold each
    hybrid row once, with the update that trained it first.
    """
    generations, kept = read(folder, "step"), read(folder, "kept")
    assert set(kept) == set(generations)
    starts = [*sorted(generations), len(weights)]
    kept_some = 0
    for start, end in pairwise(starts):
        lines = {(x["group"], x["row"]): x for x in generations[start] if hybrid(x)}
        told = {(x["group"], x["row"]): x for x in kept[start]}
        assert len(told) == len(kept[start])
        assert set(told) == set(lines)
        flat = {
            g
            for g in {x["group"] for x in generations[start]}
            if not any(x["reward"] for x in generations[start] if x["group"] == g)
        }
        updates = range(start, start + (end - start) // passes)
        assert {x["step"] for x in kept[start]} <= set(updates)
        for update in updates:
            here = {k: row_of(lines[k]) for k, x in told.items() if x["step"] == update}
            trained = Counter(identity(r) for r in rows[update] if r.prefix)
            assert Counter(map(identity, here.values())) == trained
            pool = {k: r for k, r in here.items() if r.group not in flat}
            trained_rows = list(pool.values())
            _, entropies = scores(weights[update], trained_rows, temperature)
            chosen = selected(trained_rows, entropies, 0.2)
            found = {(i, t) for i, k in enumerate(pool) for t in told[k]["kept"]}
            assert len(found) == len(chosen)
            # Rows that share a prefix have the same entropies at it: which of them is kept at the
            # cut is a matter of rounding.
            cut = min((entropies[i][t].item() for i, t in chosen), default=0.0)
            for i, t in found ^ set(chosen):
                assert abs(entropies[i][t].item() - cut) < SAME
            assert not any(told[k]["kept"] for k in here if k not in pool)
            kept_some += len({i for i, _ in chosen})
    return kept_some


def tokens(rows: list[Row]) -> int:
    """Prompts and completions."""
    return sum(len(r.prompt) + len(r.completion) for r in rows)


def counts(
    generations: dict[int, list[Line]],
    rows: list[list[Row]],
    scored: int,
    chunk: int,
    told: bool = True,
) -> list[dict[str, int]]:
    """The four counts of every update, for rollouts that were sampled once on one process.

    Args:
        generations: the rollouts by the update that they were made for.
        rows: of each update.
        scored: how many times all rows of a generation go through a forward without gradient.
        chunk: rows whose prefixes go through one forward, all as far as the longest.
        told: the sampler tells entropies, which serve the first update of a generation.
    """
    found = []
    for update, own in enumerate(rows):
        made = generations.get(update, [])
        prompts = {tuple(x["prompt_ids"]) for x in made}
        sampled = [x for x in made if not x["demonstration"]]
        unknown = [] if told and made else own
        prefixed = sorted((r for r in unknown if r.prefix), key=lambda r: r.prefix)
        chunks = [prefixed[i : i + chunk] for i in range(0, len(prefixed), chunk)]
        longest = [(r, part[-1].prefix) for part in chunks for r in part]
        found.append(
            {
                "sampled": sum(len(x["completion_ids"]) - x["prefix_length"] for x in sampled),
                "prefilled": sum(map(len, prompts)) + sum(x["prefix_length"] for x in sampled),
                "forward": scored * tokens([row_of(x) for x in made])
                + sum(len(r.prompt) + min(n, len(r.completion)) for r, n in longest),
                "trained": tokens(own),
            }
        )
    return found


def logged(history: list[dict[str, float]], prefix: str) -> list[dict[str, float]]:
    """The metrics with a prefix, from every line of a training log."""
    return [
        {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
        for line in history
        if "loss" in line
    ]


def gradients(u: Update, beta: float = 0.0, entropy: float = 0.0) -> dict[str, list[torch.Tensor]]:
    """The gradient of each part of Prefix-RFT's loss."""
    parts = prefix_rft_parts(u, beta=beta, entropy=entropy)
    return {name: u.gradient(x) for name, x in parts.items()}


def norm(*vectors: list[torch.Tensor]) -> float:
    """Of the sum of some gradients."""
    return math.sqrt(sum((sum(gs) ** 2).sum().item() for gs in zip(*vectors, strict=True)))


def norms(g: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    """What the trainer must log of Prefix-RFT's gradients, in its names."""
    found = {f"{name}_norm": n for name, x in g.items() if (n := norm(x))}
    whole = sum(found.values())
    if "continuation_norm" in found:
        found["hybrid_norm"] = norm(g["continuation"], g["prefix"])
    if "prefix_norm" in found:
        found["prefix_share"] = found["prefix_norm"] / whole
        found["without_prefix_norm"] = norm(*[x for name, x in g.items() if name != "prefix"])
    return found
