"""The live line of a run."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from prefix_rft.progress import Progress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3671, "1:01:11")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("first", "left"), [(0, "2:00 left"), (8, "10:00 left")])
def test_time_left_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int, left: str
) -> None:
    """A resumed run has not made the steps before its checkpoint."""
    now = [1000.0]
    monkeypatch.setattr("prefix_rft.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(file=io.StringIO()), tmp_path)
    state = SimpleNamespace(global_step=first, is_world_process_zero=True)
    progress.on_train_begin(None, state, None)
    now[0] += 40.0
    assert left in progress.line(10, 40)
