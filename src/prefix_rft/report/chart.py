"""Line charts as inline SVG, without script. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prefix_rft.report.axis import limits, tick_label, ticks
from prefix_rft.report.points import Point, bucket_means, smoothed
from prefix_rft.report.text import number
from prefix_rft.support.untrusted import visible

WIDTH, HEIGHT = 380, 214
TOP, BOTTOM, RIGHT = 10, 26, 12


@dataclass(frozen=True)
class Line:
    """A curve: its points in order of step, colour (of the run) and dash (of the rows)."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: str = "policy"


@dataclass(frozen=True)
class Chart:
    """What one plot shows.

    Attributes:
        title: the title in words.
        unit: the unit of the vertical axis; may be empty.
        name: the metric as the run folder calls it.
        lines: its lines; at least one of them has a finite point.
        smooth: whether a centred mean is drawn over the bucket means.
        across: what the horizontal axis shows.
    """

    title: str
    unit: str
    name: str
    lines: Sequence[Line]
    smooth: bool = True
    across: str = "step"


def path(points: Sequence[Point]) -> str:
    """SVG path data through points that are pixels already; a None breaks the line."""
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def describe(line: Line) -> str:
    """A line in words: for a reader without the picture, and when the pointer rests on it."""
    values = [y for _, y in line.points if y is not None]
    missing = len(line.points) - len(values)
    gaps = f"; {missing:,} not finite" if missing else ""
    if not values:
        return f"{line.label}: no finite value{gaps}"
    return (
        f"{line.label}: from {number(values[0])} to {number(values[-1])}, "
        f"lowest {number(min(values))}, highest {number(max(values))}{gaps}"
    )


def draw(chart: Chart, identity: int, limit: int, window: int) -> Markup:
    """The chart as an SVG element of its own.

    Args:
        chart: what to draw.
        identity: a number that no other chart of the page has.
        limit: points of a line at most.
        window: steps that the bold line's centred mean is taken over; 1 draws the bucket means.
    """
    steps = [x for line in chart.lines for x, _ in line.points]
    window = window if chart.smooth else 1
    faint = [bucket_means(line.points, limit) for line in chart.lines]
    bold = [smoothed(b, window) if window > 1 else [(p.x, p.y) for p in b] for b in faint]
    low, high = limits([b.y for buckets in faint for b in buckets if b.y is not None])
    marks = ticks(low, high)
    distance = marks[1] - marks[0] if len(marks) > 1 else high - low
    labels = [tick_label(m, distance) for m in marks]
    left = 12 + 6.3 * max(map(len, labels))
    x_low, x_high = min(steps), max(steps)
    if x_high == x_low:
        x_high = x_low + 1

    def x_of(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT)

    def y_of(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def pixels(points: Sequence[Point]) -> list[Point]:
        return [(x_of(x), None if y is None else y_of(y)) for x, y in points]

    parts = [
        Markup(
            '<path class="grid" d="M{:.1f} {:.1f}H{}"/><text class="y" x="{:.1f}" y="{:.1f}">'
        ).format(left, y_of(m), WIDTH - RIGHT, left - 6, y_of(m) + 3.6)
        + Markup("{}</text>").format(label)
        for m, label in zip(marks, labels, strict=True)
    ]
    across = ticks(x_low, x_high)
    if chart.across == "step":
        across = [m for m in across if m == int(m)]
    parts += [
        # The last label may not stand out of the picture: a character is 6.6 wide at most.
        Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(
            min(x_of(m), WIDTH - 3.3 * len(number(m))), HEIGHT - 9, number(m)
        )
        for m in across
    ]
    for i, line in enumerate(chart.lines):
        look = Markup("c{} {}").format(line.colour, line.dash)
        if window > 1:
            points = pixels([(b.x, b.y) for b in faint[i]])
            parts.append(Markup('<path class="faint {}" d="{}"/>').format(look, path(points)))
        points = pixels(bold[i])
        parts.append(
            Markup('<g><title>{}</title><path class="line {}" d="{}"/>').format(
                visible(describe(line)), look, path(points)
            )
        )
        # A line needs two points: lone ones are drawn as dots.
        parts += [
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(look, x, y)
            for x, y in lonely(points)
        ]
        parts.append(Markup("</g>"))
    return _framed(chart, identity, Markup("").join(parts))


def _framed(chart: Chart, identity: int, parts: Markup) -> Markup:
    """The parts of a chart within an SVG element that a screen reader can read."""
    words = visible(". ".join(describe(line) for line in chart.lines))
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="t{} d{}">'
        '<title id="t{}">{}</title><desc id="d{}">{}</desc>{}</svg>'
    ).format(
        *(WIDTH, HEIGHT, identity, identity),
        *(
            identity,
            visible(f"{chart.title} by {chart.across}"),
            identity,
            words,
            parts,
        ),
    )


def lonely(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Points with no neighbour to draw a line to."""
    around = [(0.0, None), *points, (0.0, None)]
    triples = zip(around, points, around[2:], strict=False)
    return [(x, y) for (_, a), (x, y), (_, b) in triples if y is not None and a is b is None]
