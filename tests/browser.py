"""Pages in a real browser, which tests look for and CI insists on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)


def need_browser() -> None:
    """Skip without a browser; fail where PREFIX_RFT_REQUIRE_BROWSER says that there is one."""
    if BROWSER is None:
        if os.environ.get("PREFIX_RFT_REQUIRE_BROWSER") == "1":
            pytest.fail("PREFIX_RFT_REQUIRE_BROWSER=1, but there is no chromium")
        pytest.skip("no chromium")


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a file with a profile of its own; what pages log is on stderr."""
    profile = page.parent / "profile"
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={profile}",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def console(page: Path) -> list[str]:
    """What a page logged to its console."""
    stderr = browse(page, "--dump-dom", "--virtual-time-budget=2000").stderr
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


def framed(report: Path, name: str, inner: str, width: int) -> Path:
    """A page with another in a frame: windows cannot be as narrow as a phone."""
    (report.parent / f"{name}_inner.html").write_text(inner, encoding="utf-8")
    page = report.parent / f"{name}.html"
    page.write_text(
        "<!doctype html><title>-</title><body style='margin:0'>"
        f"<iframe src='{name}_inner.html' style='border:0;width:{width}px;height:1600px'></iframe>"
        "<script>onmessage = e => { document.title = 'widths ' + e.data }</script>"
    )
    return page


def widths(report: Path, name: str, inner: str, width: int) -> tuple[int, int]:
    """Width of the frame and of its content, measured by a script where the policy allows it."""
    script = (
        "<script>onload = () => parent.postMessage(innerWidth + ' ' + "
        "document.documentElement.scrollWidth, '*')</script>"
    )
    free = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", inner) + script
    page = framed(report, name, free, width)
    dom = browse(page, "--dump-dom", "--virtual-time-budget=2000").stdout
    found = re.search(r"<title>widths (\d+) (\d+)</title>", dom)
    assert found, dom[:300]
    return int(found[1]), int(found[2])
