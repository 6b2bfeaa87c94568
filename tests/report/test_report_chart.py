"""Curves, axes and charts, against numbers worked out by hand."""

import math
import re
from xml.etree import ElementTree

import pytest

from prefix_rft.report.axis import limits, tick_label, ticks
from prefix_rft.report.chart import Chart, Line, describe, draw, lonely, path
from prefix_rft.report.points import Bucket, bucket_means, smoothed, window_of


def test_bucket_means_by_hand() -> None:
    points = [(1, 1.0), (2, 3.0), (3, None), (4, 5.0), (5, None), (6, None), (7, 8.0)]
    # 7 points in at most 4 buckets: 2, 2, 2 and 1.
    assert bucket_means(points, 4) == [
        Bucket(1.5, 2.0, 2),
        Bucket(3.5, 5.0, 1),
        Bucket(5.5, None, 0),
        Bucket(7.0, 8.0, 1),
    ]
    assert bucket_means(points, 7)[0] == Bucket(1.0, 1.0, 1)
    assert bucket_means([], 4) == []


def test_smoothing_weighs_by_points_and_keeps_gaps() -> None:
    buckets = [Bucket(0, 1.0, 2), Bucket(1, 4.0, 1), Bucket(2, None, 0), Bucket(3, 10.0, 1)]
    # Window 2 is one step either way: (2 * 1 + 4) / 3 = 2 for the first two; 10 stands alone.
    assert smoothed(buckets, 2) == [(0, 2.0), (1, 2.0), (2, None), (3, 10.0)]
    assert smoothed(buckets, 0) == [(0, 1.0), (1, 4.0), (2, None), (3, 10.0)]
    # Window 4: the second sees 1, 1, 4 and 10.
    assert smoothed(buckets, 4)[1] == (1, 4.0)


@pytest.mark.parametrize(("steps", "width"), [(1, 1), (30, 1), (75, 3), (100, 3), (800, 31)])
def test_window_is_odd_and_a_25th(steps: int, width: int) -> None:
    assert window_of(1, steps) == width


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(1, 800) == [200, 400, 600, 800]
    assert ticks(-0.03, 0.02) == pytest.approx([-0.03, -0.02, -0.01, 0, 0.01, 0.02])
    assert ticks(2.9e-7, 3.1e-7, 2) == pytest.approx([2.9e-7, 3e-7, 3.1e-7])


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [
        (0.2, 0.2, "0.2"),
        (1.0, 0.5, "1.0"),
        (-0.05, 0.05, "−0.05"),  # noqa: RUF001 (a minus sign)
        (1e-20, 0.1, "0"),
        (2000, 500, "2,000"),
        (3e-7, 1e-8, "3e−7"),  # noqa: RUF001
        (2.5e6, 5e5, "2.5e6"),
        (5.000001, 1e-6, "5.000001"),
    ],
)
def test_tick_labels(value: float, step: float, label: str) -> None:
    assert tick_label(value, step) == label


def test_limits_are_never_empty() -> None:
    assert limits([0.5, 1.5]) == pytest.approx((0.44, 1.56))
    assert limits([0.0, 1.0]) == pytest.approx((0.0, 1.06))  # a share is not drawn below zero
    assert limits([2.0]) == pytest.approx((1.8, 2.2))
    assert limits([0.0]) == (0.0, 1.0)


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 4.0), (4, None)]
    assert path(points) == "M0.0 1.0L1.0 2.0M3.0 4.0"
    assert lonely(points) == [(3, 4.0)]
    assert lonely([(0, 1.0)]) == [(0, 1.0)]


def test_a_line_in_words() -> None:
    line = Line("r1", [(1, 0.25), (2, None), (3, 1.5), (4, 1.0)])
    assert describe(line) == "r1: from 0.25 to 1, lowest 0.25, highest 1.5; 1 not finite"
    assert describe(Line("r1", [(1, None)])) == "r1: no finite value; 1 not finite"


def test_a_chart_puts_points_where_they_belong() -> None:
    lines = [
        Line("r1", [(0, 0.0), (10, 1.0)], 0, "policy"),
        Line("r2", [(0, 1.0), (10, 0.5)], 1, "prefix"),
    ]
    svg = ElementTree.fromstring(draw(Chart("Reward", "", "reward", lines), 3, 300, 1))  # noqa: S314
    assert svg.find("title").text == "Reward by step"
    assert svg.get("aria-labelledby") == "t3 d3"
    assert "r2: from 1 to 0.5" in svg.find("desc").text
    paths = {p.get("class"): p.get("d") for p in svg.iter("path")}
    first = [float(n) for n in re.findall(r"[\d.]+", paths["line c0 policy"])]
    second = [float(n) for n in re.findall(r"[\d.]+", paths["line c1 prefix"])]
    # The axis goes from 0 to 1.06 over 214 - 10 - 26 = 178 pixels; three-letter labels.
    left = 12 + 6.3 * 3
    assert first == pytest.approx([left, 188, 368, 10 + 178 * 0.06 / 1.06], abs=0.06)
    assert second[3] == pytest.approx(10 + 178 * 0.56 / 1.06, abs=0.06)


def test_a_chart_never_holds_what_is_not_a_number() -> None:
    lines = [Line("r", [(5, 3e-9), (6, None), (7, 3e-9)])]
    picture = draw(Chart("t", "", "t", lines), 0, 2, 1)
    assert "nan" not in picture
    assert "inf" not in picture
    for low, high in [(0, 1e-12), (-1e12, 1e12), (5, 5.000001)]:
        assert all(math.isfinite(t) for t in ticks(low, high))
        assert 2 <= len(ticks(low, high)) <= 7


def test_names_in_charts_are_escaped_and_made_visible() -> None:
    lines = [Line("<b>\x1b", [(0, 0.0), (1, 1.0)])]
    picture = draw(Chart("</title><script>", "", "x", lines), 0, 300, 1)
    assert "<script>" not in picture
    assert "<b>" not in picture
    assert "&lt;b&gt;⟨ESC⟩" in picture


def test_no_label_stands_out_of_the_picture() -> None:
    chart = Chart("t", "", "t", [Line("r", [(1, 0.0), (1000, 1.0)])])
    svg = ElementTree.fromstring(draw(chart, 0, 300, 1))  # noqa: S314
    labels = {t.text: float(t.get("x")) for t in svg.iter("text") if t.get("class") == "x"}
    # Five characters of 6.6 around their middle, in a picture 380 wide.
    assert labels["1,000"] == pytest.approx(380 - 16.5)
