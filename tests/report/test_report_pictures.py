"""Grids of pictures in the report: which of them, inline, and as a browser shows them."""

import base64
import json
import re
from pathlib import Path

import pytest
import torch

from browser import console, need_browser, widths
from prefix_rft.diffusion.pictures import Shades, write_grid
from prefix_rft.report import write_report
from prefix_rft.runs.pictures import grid_path
from prefix_rft.support.errors import UserError


def drawing_run(folder: Path, steps: int) -> Path:
    """What ``prefix-rft diffusion`` leaves, as far as a report reads it."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps({"command": "diffusion", "method": "sspo"}))
    lines = [{"step": i, "loss": 1 / i, "diffusion/flip": i % 3 - 1} for i in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    source = torch.Generator().manual_seed(0)
    for step in (None, *range(0, 30 * steps, 30)):
        pictures = torch.rand(9, 3, 8, 8, generator=source)
        write_grid(grid_path(folder, step), pictures, Shades(0, 1))
    return folder


def test_the_first_the_last_and_some_between(tmp_path: Path) -> None:
    run = drawing_run(tmp_path / "run", 21)
    page = write_report([str(run)]).read_text()
    words = re.findall(r'alt="([^"]+)"', page)
    assert words == ["the data", *(f"step {s}" for s in (0, 120, 240, 360, 480, 600))]
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(found[0]) == grid_path(run, None).read_bytes()
    assert base64.b64decode(found[-1]) == grid_path(run, 600).read_bytes()
    # A run that draws has no section for rollouts, and no evaluation by a reward.
    assert re.findall(r'<h2 id="(\w+)"', page) == [
        "curves", "pictures", "configuration", "environment",
    ]  # fmt: skip
    grid_path(run, 600).write_text("<svg onload=alert(1)>")
    with pytest.raises(UserError, match=r"grid_000600.png' is damaged: it is no PNG"):
        write_report([str(run)])


def test_in_a_browser(tmp_path: Path) -> None:
    need_browser()
    runs = [str(drawing_run(tmp_path / name, 3)) for name in ("one", "two")]
    report = write_report(runs, str(tmp_path / "report.html"))
    assert console(report) == []
    frame, content = widths(report, "narrow", report.read_text(), 360)
    assert content <= frame
