"""The picture of this folder: each run's end against lambda of its SFT model, as SVG.

python benchmarks/regimes/picture.py     # writes lambda.svg
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("lambda.svg")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 62, 18, 30, 56
LOW, HIGH = 0.01, 100.0
"""Of lambda; what is outside stands at the edge."""
ARMS = {
    "sft": ("SFT alone", "#8a8f98", "circle"),
    "sft+dr_grpo": ("SFT, then RL, 3e-4", "#d1495b", "circle"),
    "sft+dr_grpo_slow": ("the same, 1e-4", "#e8a33d", "circle"),
    "sft+adaback": ("SFT, then AdaBack", "#2a6f97", "square"),
    "sft+control": ("SFT, then control", "#3a9d5d", "triangle"),
}


def across(solved: float) -> float:
    """Where a value of lambda stands, in pixels."""
    share = math.log(min(max(solved, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def up(percent: float) -> float:
    """Where a percentage stands, in pixels."""
    return TOP + (1 - percent / 100) * (HEIGHT - TOP - BOTTOM)


def mark(x: float, y: float, colour: str, shape: str) -> str:
    """A mark of an arm."""
    if shape == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'
    if shape == "triangle":
        points = f"{x:.1f},{y - 6:.1f} {x - 5.5:.1f},{y + 4:.1f} {x + 5.5:.1f},{y + 4:.1f}"
        return f'<polygon points="{points}" fill="{colour}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.8" fill="{colour}"/>'


def text(x: float, y: float, words: str, how: str = "") -> str:
    """Some words."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{words}</text>'


def draw(found: Mapping[str, Sequence[Any]]) -> str:
    """The picture of some cells."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        # Between a half and two the rule was not scored.
        f'<rect x="{across(0.5):.1f}" y="{TOP}" width="{across(2) - across(0.5):.1f}" '
        f'height="{bottom - TOP}" fill="#f0ead6"/>',
    ]
    for percent in range(0, 101, 25):
        y = up(percent)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, y + 4, f"{percent} %", 'text-anchor="end"'))
    for solved in (0.01, 0.1, 1.0, 10.0, 100.0):
        x, words = across(solved), f"{solved:g}"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(
            text(x, bottom + 18, f"{words} or less" if solved == LOW else words,
                 'text-anchor="middle"')
        )  # fmt: skip
    middle = (LEFT + right) / 2
    parts.append(
        text(middle, HEIGHT - 10, "lambda: rows of a step x success of the SFT model",
             'text-anchor="middle"')
    )  # fmt: skip
    for number, (arm, (_, colour, shape)) in enumerate(ARMS.items()):
        aside = 6 * (number - (len(ARMS) - 1) / 2)  # so that no mark hides another
        for runs in found.values():
            for run in runs:
                if arm in run.records:
                    mean = 100 * float(np.nanmean(run.rewards(arm)))
                    parts.append(mark(across(run.solved.mean) + aside, up(mean), colour, shape))
    for i, (label, colour, shape) in enumerate(ARMS.values()):
        x = LEFT + 4 + i * 138
        parts += [mark(x, 14, colour, shape), text(x + 10, 18, label)]
    return "\n".join([*parts, "</svg>"]) + "\n"
