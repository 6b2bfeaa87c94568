"""One live line in a terminal; elsewhere a plain one at least every minute."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prefix_rft.support.console import say
from prefix_rft.support.phases import Phases

SILENCE = 60.0
"""The most seconds without a line."""
LOOK_SECONDS = 1.0


class Steadfast(Console):
    """A console whose reader may leave (``| tee`` hears Ctrl-C too): a run goes on without it."""

    def on_broken_pipe(self) -> None:
        """Write to nobody from now on."""
        self.quiet = True
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, sys.stdout.fileno())
        os.close(nobody)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Display:
    """What a run is doing, for its reader, from entering to leaving the context.

    In a terminal one line at the bottom, always as things are. Elsewhere a plain line where
    something is worth one, and at least one a minute: whatever takes long tells ``phases`` of its
    progress, and a thread looks at the clock for what cannot. A quiet console shows nothing.

    Attributes:
        phases: the phases, to be handed to whatever takes long.
        before: what stands before the phase, asked for anew for each line.
        behind: what stands behind it.

    Args:
        console: the console to show it on.
        now: a clock in seconds.
        thread: look at the clock from a thread as well.
    """

    def __init__(
        self, console: Console, now: Callable[[], float] = time.monotonic, thread: bool = True
    ) -> None:
        self.console = console
        self.now = now
        self.phases = Phases(self._heard)
        self.before: Callable[[], str] = self.spent
        self.behind: Callable[[], str] = str
        self.thread = threading.Thread(target=self._watch, daemon=True) if thread else None
        self.live: Live | None = None
        self.spinner = Spinner("dots")
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._soon = False
        self._began = self._last = now()

    def __enter__(self) -> Self:
        self._began = self._last = self.now()
        if self.console.quiet:
            return self
        if self.console.is_terminal:
            self.live = Live(
                console=self.console,
                get_renderable=self._moving,
                refresh_per_second=4,
                transient=True,
            )
            self.live.start()
        elif self.thread is not None:
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.thread is not None and self.thread.is_alive():
            self.thread.join()

    def line(self) -> str:
        """``step 20/200  0:12 spent, 1:48 left  sampling 12 of 128  loss ...``."""
        parts = (self.before(), str(self.phases), self.behind())
        return "  ".join(part for part in parts if part)

    def spent(self) -> str:
        """The time since the display was entered."""
        return f"{clock(self.now() - self._began)} spent"

    def soon(self) -> None:
        """Print the next phase as soon as it begins, away from a terminal."""
        self._soon = True

    def leave(self, line: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._last, self._soon = self.now(), False
            say(self.console, line)

    def _heard(self, changed: bool = True) -> None:
        """Print a line if one is due."""
        if self.live is not None or self._over.is_set():
            return
        with self._lock:
            if (changed and self._soon) or self.now() - self._last >= SILENCE:
                self.leave(self.line())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._heard(changed=False)

    def _moving(self) -> Text:
        frame = self.spinner.render(self.console.get_time())
        return Text(f"{frame} {self.line()}", overflow="ellipsis", no_wrap=True)


def by_job(display: Display) -> Callable[[str, int, int], None]:
    """What is called with a job's name, the problems done, and those to do."""
    jobs: set[str] = set()

    def progress(job: str, done: int, total: int) -> None:
        if job not in jobs:
            jobs.add(job)
            display.soon()
            display.phases.begin(f"{job}: problem", total)
        display.phases.at(done)

    return progress
