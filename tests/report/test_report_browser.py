"""The report in a real browser: nothing runs, nothing overflows, there is something to see."""

import struct
from itertools import product
from pathlib import Path

import pytest
from report_runs import EVALUATION, hostile_run, metrics_of, row, words, write_run

from browser import browse, console, framed, need_browser, widths
from prefix_rft.report import write_report
from tables import rest_slow

SCRIPT = "<script>console.error('a script has run')</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of an ordinary and a hostile run."""
    need_browser()
    folder = tmp_path_factory.mktemp("browser")
    rows = [row(g, i, prefix_length=2 * (i == 0), kept=[1]) for g in range(4) for i in range(4)]
    plain = write_run(folder / "plain", metrics_of(60), [rows] * 3, words(), EVALUATION)
    runs = [str(plain), str(hostile_run(folder, 2))]
    return write_report(runs, str(folder / "report.html"))


def opened(report: Path) -> str:
    """The page with all its details open, so that all of it is laid out."""
    return report.read_text(encoding="utf-8").replace("<details", "<details open")


def test_nothing_is_logged(report: Path) -> None:
    assert console(report) == []


def test_the_console_is_really_read(report: Path) -> None:
    page = report.parent / "control.html"
    page.write_text(f"<!doctype html>{SCRIPT}")
    assert len(console(page)) == 1


def test_the_policy_stops_a_script(report: Path) -> None:
    page = report.parent / "injected.html"
    page.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{SCRIPT}</body>"))
    logged = console(page)
    assert len(logged) == 1
    assert "Content Security Policy" in logged[0]
    assert "a script has run" not in logged[0].split("source")[0]


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_nothing_is_wider_than_the_window(report: Path, width: int) -> None:
    assert widths(report, f"width{width}", opened(report), width) == (width, width)


def test_overflow_is_really_measured(report: Path) -> None:
    wide = opened(report).replace("<header>", "<div style='width:600px'>x</div><header>", 1)
    assert widths(report, "wide", wide, 390)[1] >= 600


@pytest.mark.parametrize(
    ("width", "scheme"),
    rest_slow(
        product([390, 1280], ["light", "dark"]),
        lambda width, scheme: (width == 390) == (scheme == "dark"),
    ),
)
def test_there_is_something_to_see(report: Path, width: int, scheme: str) -> None:
    page = framed(report, f"seen{width}{scheme}", report.read_text(encoding="utf-8"), width)
    shot = report.parent / f"{width}{scheme}.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(page, f"--screenshot={shot}", f"--window-size={max(width, 500)},1600", *flags)
    data = shot.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (max(width, 500), 1600)
    # An empty page of that size takes some 10 kB.
    assert len(data) > 60_000


def test_an_empty_page_would_be_noticed(report: Path) -> None:
    page = report.parent / "empty.html"
    page.write_text("<!doctype html>")
    shot = report.parent / "empty.png"
    browse(page, f"--screenshot={shot}", "--window-size=1280,1600")
    assert len(shot.read_bytes()) < 20_000
