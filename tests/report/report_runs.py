"""Run folders that were never run: as few or as many rows as a test needs, whatever they hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from prefix_rft.runs.rollouts import Rollout

RECIPE = {
    "model": "base",
    "train_data": "train.jsonl",
    "name": "one",
    "method": {"name": "prefix_rft", "num_hybrid": 1},
    "trainer": {"learning_rate": 1e-6, "seed": 0},
}

ESCAPE, OVERRIDE, NUL = "\x1b", "\u202e", "\0"
HOSTILE = [
    "<script>console.error('ran')</script>",
    "</div></details></style><img src=x onerror=console.error(1)>",
    "<svg onload=console.error(2)></svg>{{ 7 * 7 }}{% raw %}",
    f"{ESCAPE}[2J{ESCAPE}]0;title\x07\x9b31m bell and colours",
    f"{OVERRIDE}desrever\u2066\u2069\u200f\u061c",
    f"nul {NUL} return \r line \u2028 bom \ufeff tag \U000e0041",
    "\ud800 lone \udfff surrogates",
    "&lt;b&gt; &amp; \"double\" 'single' `back`",
    "e" + "\u0301" * 400,
    "x" * 1_000_000,
]

EVALUATION = {
    stage: {"mean": m, "low": m - 0.1, "high": m + 0.1, "problems": 40, "samples": 4}
    for stage, m in (("base", 0.25), ("trained", 0.5))
}


def row(group: int = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A rollout as the library writes it: 'a b c' after its first ``prefix_length`` tokens."""
    given = {
        "step": 0,
        "example": 7,
        "group": group,
        "row": number,
        "prompt_ids": [0],
        "completion_ids": [0, 1, 2],
        "prefix_length": 0,
        "demonstration": False,
        "attempt": 0,
        "prompt": "a question",
        "text": "a b c",
        "reward": 0.0,
        "verdicts": {"reward": {"status": "wrong", "reward": 0.0, "detail": ""}},
        "advantage": 0.0,
        "truncated": False,
        "hint_length": 0,
        "images": [],
    }
    return {**given, **changes}


def rollout(
    group: int = 0, number: int = 0, kept: Sequence[int] | None = None, **changes: Any
) -> Rollout:
    """The same as it is read."""
    places = None if kept is None else frozenset(kept)
    return Rollout.read(row(group, number, **changes), kept=places)


def words() -> Tokenizer:
    """A tokenizer of whole words: a is 0, b is 1, c is 2."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<unk>": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def byte_level() -> Tokenizer:
    """A tokenizer of single bytes, as GPT-2 and Qwen have at the bottom."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_run(
    folder: Path,
    metrics: Sequence[dict[str, Any]] = (),
    rollouts: Sequence[Sequence[dict[str, Any]]] = (),
    tokenizer: Tokenizer | None = None,
    evaluation: dict[str, Any] | None = None,
    recipe: dict[str, Any] = RECIPE,
) -> Path:
    """A run folder; ``rollouts`` are rows by step; a key ``kept`` goes to a file of its own."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "git": None}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for step, rows in enumerate(rollouts):
        path = folder / "rollouts" / f"step_{step:06d}.jsonl"
        lines = [{k: v for k, v in r.items() if k != "kept"} for r in rows]
        path.write_text("".join(json.dumps({**r, "step": step}) + "\n" for r in lines))
        kept = [{k: r[k] for k in ("group", "row", "kept")} for r in rows if "kept" in r]
        if kept:
            path = folder / "rollouts" / f"kept_{step:06d}.jsonl"
            path.write_text("".join(json.dumps(k) + "\n" for k in kept))
    if tokenizer:
        (folder / "model").mkdir()
        tokenizer.save(str(folder / "model" / "tokenizer.json"))
    if evaluation:
        (folder / "eval.json").write_text(json.dumps(evaluation))
    return folder


def metrics_of(steps: int) -> list[dict[str, Any]]:
    """Some of the metrics that a run of Prefix-RFT logs, over ``steps`` steps."""
    return [
        {
            "step": s + 1,
            "loss": 0.1 / (s + 1),
            "policy/reward": s / steps,
            "prefix/reward": 1 - s / steps / 2,
            "policy/entropy": 0.3 + 0.1 * (s % 7),
            "prefix/low": 0.95 - 0.9 * s / steps,
            "prefix/high": 0.95,
            "gradient/policy": 0.5 + 0.01 * (s % 5),
            "gradient/prefix": 0.5 - 0.01 * (s % 5),
            "learning_rate": 1e-6,
        }
        for s in range(steps)
    ]


def hostile_run(folder: Path, steps: int = 1) -> Path:
    """Whatever may come from a model, a dataset or a grader holds something hostile."""
    rows = [
        row(g, i, text=t, prompt=HOSTILE[g], verdicts={t[:40]: {"status": t[:60], "detail": t}})
        for g in range(len(HOSTILE))
        for i, t in enumerate(HOSTILE)
    ]
    bad = HOSTILE[1]
    recipe = {**RECIPE, "model": HOSTILE[0], bad: {"\x1b": "\ud800\u202e"}, "method": bad}
    metrics = [{**m, bad: m["step"], "\ud800": m["step"] * 2} for m in metrics_of(steps + 2)]
    evaluation = {bad: EVALUATION["base"]}
    return write_run(folder / "<script>x", metrics, [rows] * steps, words(), evaluation, recipe)
