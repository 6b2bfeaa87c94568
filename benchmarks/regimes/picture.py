"""The pictures of this folder as SVG: each run's end against lambda of its SFT model, and a map.

``tables.py --write`` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE, MAP = (Path(__file__).with_name(name) for name in ("lambda.svg", "map.svg"))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 62, 18, 30, 56
LOW, HIGH = 0.01, 100.0
"""Of lambda; what is outside stands at the edge."""
ARMS = {
    "sft": ("SFT alone", "#8a8f98", "circle"),
    "sft+dr_grpo": ("SFT, then RL, 3e-4", "#e8a33d", "circle"),
    "sft+dr_grpo_slow": ("the same, 1e-4", "#d1495b", "circle"),
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
        x = LEFT - 30 + i * 138
        parts += [mark(x, 14, colour, shape), text(x + 10, 18, label)]
    return "\n".join([*parts, "</svg>"]) + "\n"


COLUMN, ROW, SIDE = 168, 82, 160
"""Sizes in the map, in pixels."""


def colour_of(difference: float) -> str:
    """From white, where nothing is ahead, to blue for prefixes and to red for RL."""
    share = min(abs(difference) / 80, 1.0)
    end = (42, 111, 151) if difference > 0 else (209, 73, 91)
    return "#" + "".join(f"{round(255 + share * 0.75 * (c - 255)):02x}" for c in end)


def draw_map(ends: Sequence[Any]) -> str:
    """Demonstrations across, tasks and lengths down; each cell with lambda and both ends."""
    tasks = list(dict.fromkeys((e.cell.task, e.cell.length) for e in ends))
    counts = sorted({e.cell.demonstrations for e in ends})
    width, height = SIDE + COLUMN * len(counts) + 10, 40 + ROW * len(tasks) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, n in enumerate(counts):
        x = SIDE + COLUMN * (i + 0.5)
        parts.append(text(x, 24, f"{n:,} demonstrations", 'text-anchor="middle"'))
    for j, (task, length) in enumerate(tasks):
        unit = "numbers" if task == "countdown" else "steps"
        y = 40 + ROW * (j + 0.5)
        parts.append(text(SIDE - 12, y + 4, f"{task}, {length} {unit}", 'text-anchor="end"'))
    for end in ends:
        x = SIDE + COLUMN * counts.index(end.cell.demonstrations)
        y = 40 + ROW * tasks.index((end.cell.task, end.cell.length))
        low, high = min(end.solved), max(end.solved)
        several = f"{low:.2g} to {high:.2g}, {len(end.solved)} runs"
        words = [
            f"RL {end.rl:.0f} %, prefixes {end.context:.0f} %",
            f"lambda {several if len(end.solved) > 1 else f'{low:.2g}, 1 run'}",
        ]
        colour = colour_of(end.context - end.rl)
        parts.append(
            f'<rect x="{x + 3}" y="{y + 3}" width="{COLUMN - 6}" height="{ROW - 6}" '
            f'fill="{colour}" stroke="#bbb"/>'
        )
        for k, line in enumerate(words):
            how = 'text-anchor="middle"' + (' font-size="11"' if k else "")
            parts.append(text(x + COLUMN / 2, y + 36 + 19 * k, line, how))
    foot = (
        "after SFT: the best arm of RL and of prefixes, on validation rows; blue: prefixes are "
        "ahead, red: RL is"
    )
    parts.append(text(12, height - 12, foot, 'font-size="11"'))
    return "\n".join([*parts, "</svg>"]) + "\n"
