"""The page of a comparison: one self-contained HTML file in the look of ``prefix-rft report``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefix_rft.compare import remains, tables
from prefix_rft.compare.job import BASE
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import ArmResult, mean_path
from prefix_rft.compare.tables import Section, at
from prefix_rft.compare.view import as_markdown
from prefix_rft.compare.work import HELD_OUT
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.report.chart import Chart, Line, draw
from prefix_rft.report.evaluation import draw_interval
from prefix_rft.report.text import MINUS
from prefix_rft.report.write import MOST_RUNS, render
from prefix_rft.support.writing import write_text

CHECKPOINTS = 1000
"""Points of a curve; all of them."""


def write_page(board: Board, arms: Sequence[ArmResult]) -> Path:
    """Write ``comparison.html`` and ``comparison.md``; returns the path of the first."""
    write_text(board.folder / "comparison.md", as_markdown(board, arms))
    path = board.folder / "comparison.html"
    page = render(context(board, arms), "comparison.html.jinja", "prefix_rft.compare")
    write_text(path, page)
    return path


def context(board: Board, arms: Sequence[ArmResult]) -> dict[str, Any]:
    """What the template is given."""
    comparison = board.comparison
    first = comparison.temperatures[0]
    colours = {line.name: i for i, line in enumerate(arms[:MOST_RUNS])}
    charts = [*_pass_charts(board, arms, colours), *_along_training(board, arms, colours)]
    missing = [line for line in arms if 0 < line.seeds < comparison.seeds and line.name != BASE]
    own = [a.name for a in comparison.arms if a.control is None]
    return {
        "title": Path(board.recipe).stem + ": " + ", ".join(own[:6]),
        "arms": len(comparison.arms),
        "reference": comparison.reference,
        "seeds": comparison.seeds,
        "samples": comparison.samples,
        "problems": max(line.cells[HELD_OUT][first].problems for line in arms),
        "missing": [line.name for line in missing],
        "differences": _differences(board, arms),
        "gains": forest(_gains(board)),
        "controls": [
            re.sub(r"(?<=[ \[(])-(?=\d)", MINUS, words) for words in remains.sentences(board)
        ],
        "results": _grid(tables.results(board, arms), arms),
        "costs": _grid(tables.costs(board, arms), arms),
        "collected": [(line.name, line.collected) for line in arms if line.collected],
        "validation": comparison.validation_data is not None,
        "swept": [(line.name, line.swept) for line in arms if line.swept],
        "parts": [_grid(b, arms) for b in tables.parts(board, arms)],
        "sets": [_grid(b, arms) for b in tables.other_sets(board, arms)],
        "charts": [(c, draw(c, i, CHECKPOINTS, 1)) for i, c in enumerate(charts)],
        "legend": [(name, i, _dash(board, name)) for name, i in colours.items()],
        "left_out": [line.name for line in arms[MOST_RUNS:]],
        "machine": machine_of(board),
    }


def verdict(difference: Estimate) -> str:
    """What a difference from the reference says, in a word or two."""
    if not difference.excludes_zero:
        return "no difference shown"
    return "ahead" if difference.mean > 0 else "behind"


def signed(difference: Estimate) -> str:
    """``+1.2 [-0.3, +2.7]`` with minus signs."""
    return difference.signed.replace("-", MINUS)


def _grid(block: Section, arms: Sequence[ArmResult]) -> dict[str, Any]:
    """A table whose rows stand in groups, with minus signs."""
    starts = [i > 0 and line.group != arms[i - 1].group for i, line in enumerate(arms)]
    rows = [[name, *(c.replace("-", MINUS) for c in cells)] for name, *cells in block.rows]
    return {"title": block.title, "head": block.head, "rows": list(zip(starts, rows, strict=True))}


def _differences(board: Board, arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """By temperature, the arms' paired differences from the reference, drawn on one scale."""

    def cells(temperature: float) -> list[tuple[str, Estimate]]:
        pairs = [(line.name, line.cells[HELD_OUT][temperature].difference) for line in arms]
        return [(name, d) for name, d in pairs if d is not None and name != BASE]

    return forest([(at(t), cells(t)) for t in board.comparison.temperatures])


def _gains(board: Board) -> list[tuple[str, list[tuple[str, Estimate]]]]:
    """For each arm with controls, its gain and what remains of it, at the first temperature."""
    blocks: dict[str, list[tuple[str, Estimate]]] = {}
    for one in remains.remains(board, board.comparison.temperatures[0]):
        rows = blocks.setdefault(f"{one.arm}, over {one.over}", [("gain", one.gain)])
        rows.append((f"remains, control: {one.control.kind}", one.remains))
        rows.append((f"difference, control: {one.control.kind}", one.difference))
    return list(blocks.items())


def forest(blocks: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]]) -> list[dict[str, Any]]:
    """Differences, drawn on one scale.

    Args:
        blocks: titles, and below each what differs, and by how much.
    """
    every = [d for _, cells in blocks for _, d in cells]
    ends = [x for d in every for x in (d.low, d.high, d.mean) if math.isfinite(x)]
    if not ends:
        return []
    scale = (min(0.0, *ends), max(0.0, *ends))
    if scale[0] == scale[1]:
        scale = (-0.01, 0.01)
    drawn = []
    for title, cells in blocks:
        rows = [
            {"arm": name, "word": verdict(d), "words": signed(d), "picture": _picture(d, scale)}
            for name, d in cells
        ]
        drawn.append({"title": title, "rows": rows})
    return drawn


def _picture(difference: Estimate, scale: tuple[float, float]) -> Markup | str:
    if not math.isfinite(difference.low):
        return ""
    return draw_interval((difference.low, difference.mean, difference.high), scale, zero=True)


def _pass_charts(
    board: Board, arms: Sequence[ArmResult], colours: Mapping[str, int]
) -> list[Chart]:
    """pass@k against k, for each temperature with several samples."""
    charts = []
    for temperature in board.comparison.temperatures:
        curves = []
        for line in arms:
            by_k = line.cells[HELD_OUT][temperature].pass_at
            if line.name in colours and len(by_k) > 1:
                points = [(math.log2(k), 100 * e.mean) for k, e in sorted(by_k.items())]
                look = colours[line.name], _dash(board, line.name)
                curves.append(Line(line.name, points, *look))
        if curves:
            title = f"pass@k, {at(temperature)}"
            charts.append(Chart(title, "%", "", curves, smooth=False, across="log2 of k"))
    return charts


def _dash(board: Board, name: str) -> str:
    """Lines of arms that start from another one's model are dashed."""
    later = name != BASE and board.comparison.arm(name).start is not None
    return "prefix" if later else "policy"


def _along_training(
    board: Board, arms: Sequence[ArmResult], colours: Mapping[str, int]
) -> list[Chart]:
    """Means over seeds of the models saved along training, where there are any."""
    paths = {
        line.name: path
        for line in arms
        if line.name in colours and line.name != BASE and (path := mean_path(board, line.name))
    }
    if not paths:
        return []

    def chart(title: str, unit: str, across: str, pick: Callable[[Any], Any]) -> Chart:
        curves = [
            Line(name, [pick(p) for p in path], colours[name], _dash(board, name))
            for name, path in paths.items()
        ]
        return Chart(title, unit, "", curves, smooth=False, across=across)

    return [
        chart(
            "Reward against SFT loss along training",
            "%",
            "SFT loss on held-out demonstrations",
            lambda p: (p["sft_loss"], 100 * p["reward_0"]),
        ),
        chart("Reward", "%", "step", lambda p: (p["step"], 100 * p["reward_0"])),
        chart(
            "What half of a demonstration adds to the reward",
            "points",
            "step",
            lambda p: (p["step"], 100 * (p["reward_0.5"] - p["reward_0"])),
        ),
        chart(
            "SFT loss on held-out demonstrations",
            "nats",
            "step",
            lambda p: (p["step"], p["sft_loss"]),
        ),
    ]


def machine_of(board: Board) -> list[tuple[str, str]]:
    """Where the runs were made; a value for each that occurred."""
    records = [r for j in board.jobs() if (r := board.record(j)) is not None]
    machines = [r.get("machine") or {} for r in records]
    facts = {
        "device": [m.get("device") for m in machines],
        "system": [m.get("system") for m in machines],
        "threads": [m.get("threads") for m in machines],
        "date": [str(m.get("date", ""))[:10] for m in machines],
        "commit": [_commit(m.get("git")) for m in machines],
        "torch": [(m.get("packages") or {}).get("torch") for m in machines],
        "trl": [(m.get("packages") or {}).get("trl") for m in machines],
        "transformers": [(m.get("packages") or {}).get("transformers") for m in machines],
    }
    return [
        (name, ", ".join(dict.fromkeys(str(v) for v in values if v)))
        for name, values in facts.items()
        if any(values)
    ]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return ""
    return str(git["commit"])[:9] + (" (changed since)" if git.get("dirty") else "")
