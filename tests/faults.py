"""Graders that go wrong. Each does so where the completion says ``bad``, else gives 1.0."""

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from prefix_rft.rewards.verdict import Verdict

SLEEP = str(3601 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))
"""Seconds; so many that its processes can be told from those of tests at the same time."""


def _on_bad(completions: list[str], act: Any) -> list[Any]:
    return [act() if c == "bad" else 1.0 for c in completions]


def sleeps(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: time.sleep(3600))


def spins(completions: list[str], **kwargs: Any) -> list[Any]:
    def spin() -> None:
        while True:
            pass

    return _on_bad(completions, spin)


def backtracks(completions: list[str], **kwargs: Any) -> list[Any]:
    """Stuck inside one call of C code that holds the interpreter's lock."""
    import re

    return _on_bad(completions, lambda: re.match(r"(a+)+$", "a" * 60 + "b"))


def fails(completions: list[str], **kwargs: Any) -> list[Any]:
    def fail() -> None:
        raise KeyError("no such thing")

    return _on_bad(completions, fail)


def leaves(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: sys.exit(0))


def exits(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: os._exit(3))


def crashes(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: ctypes.string_at(0))


def allocates(completions: list[str], **kwargs: Any) -> list[Any]:
    def allocate() -> None:
        kept = []
        while True:
            kept.append(bytearray(30_000_000))

    return _on_bad(completions, allocate)


def prints(completions: list[str], **kwargs: Any) -> list[Any]:
    def shout() -> float:
        for stream in (sys.stdout, sys.stderr):
            stream.write("x" * 1_000_000 + "\n")
            stream.flush()
        os.write(1, b'{"status": "correct"}\n' * 1000)
        return 1.0

    return _on_bad(completions, shout)


def _write_everywhere(data: bytes) -> float:
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            continue
    return 1.0


def scribbles(completions: list[str], **kwargs: Any) -> list[Any]:
    """Writes rubbish to every file that is open."""
    return _on_bad(completions, lambda: _write_everywhere(b"rubbish\n"))


def forges(completions: list[str], **kwargs: Any) -> list[Any]:
    """Writes what looks like an answer."""
    line = b'{"item": 1, "verdict": ["correct", 1.0, ""], "last": false}\n'
    return _on_bad(completions, lambda: _write_everywhere(line))


def pretends(completions: list[str], **kwargs: Any) -> list[Any]:
    """Writes JSON that is no answer, and what would stop a run."""
    line = b'1\n[]\n{}\n{"failed": "x"}\n' + b"[" * 60_000 + b"\n"
    return _on_bad(completions, lambda: _write_everywhere(line))


def forks(completions: list[str], **kwargs: Any) -> list[Any]:
    """The child goes on in the grader's process as if nothing had happened."""

    def fork() -> float:
        os.fork()
        return 1.0

    return _on_bad(completions, fork)


def fork_exits(completions: list[str], **kwargs: Any) -> list[Any]:
    def fork() -> float:
        if os.fork() == 0:
            sys.exit(0)
        return 1.0

    return _on_bad(completions, fork)


def fork_holds(completions: list[str], **kwargs: Any) -> list[Any]:
    """Ends while a child of its lives on."""

    def fork() -> None:
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(3)

    return _on_bad(completions, fork)


def daemons(completions: list[str], **kwargs: Any) -> list[Any]:
    """Starts a program in a session of its own."""

    def start() -> float:
        subprocess.Popen(["sleep", SLEEP], start_new_session=True)
        return 1.0

    return _on_bad(completions, start)


def threads(completions: list[str], **kwargs: Any) -> list[Any]:
    """Leaves a thread behind that would use up the time of the items after it."""
    import threading

    def spin() -> None:
        while True:
            pass

    def start() -> float:
        threading.Thread(target=spin, daemon=True).start()
        return 1.0

    return _on_bad(completions, start)


def lingers(completions: list[str], **kwargs: Any) -> list[Any]:
    """As ``threads``, and the items after it sleep: the thread's work would be charged to them."""
    if "bad" in completions:
        return threads(completions)
    time.sleep(0.7)
    return [1.0] * len(completions)


def closes(completions: list[str], **kwargs: Any) -> list[Any]:
    """Its pipes are closed some time before it ends."""

    def close() -> None:
        os.closerange(3, 64)
        time.sleep(0.2)
        os._exit(5)

    return _on_bad(completions, close)


def interrupts(completions: list[str], **kwargs: Any) -> list[Any]:
    def interrupt() -> None:
        raise KeyboardInterrupt

    return _on_bad(completions, interrupt)


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError


def speechless(completions: list[str], **kwargs: Any) -> list[Any]:
    def fail() -> None:
        raise SpeechlessError

    return _on_bad(completions, fail)


def surrogates(completions: list[str], **kwargs: Any) -> list[Any]:
    def fail() -> None:
        raise OSError("caf\udce9" + "x" * 1_000_000)

    return _on_bad(completions, fail)


def signals(completions: list[str], **kwargs: Any) -> list[Any]:
    """Ends by a signal that has no name."""
    return _on_bad(completions, lambda: os.kill(os.getpid(), 35))


def ignores(completions: list[str], **kwargs: Any) -> list[Any]:
    """Runs for ever and ignores the signal that should stop it."""
    import signal

    def spin() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        while True:
            pass

    return _on_bad(completions, spin)


def infinite(completions: list[str], **kwargs: Any) -> list[Any]:
    """Finite here, but not in the single precision of a trainer."""
    return _on_bad(completions, lambda: 1e39)


def works(completions: list[str], **kwargs: Any) -> list[Any]:
    """Takes 0.35 seconds of processor time, on a busy machine too."""
    end = time.process_time() + 0.35
    while time.process_time() < end:
        pass
    return [1.0] * len(completions)


def children(completions: list[str], **kwargs: Any) -> list[Any]:
    """Starts a program that outlives the call, then waits for ever."""

    def start() -> None:
        subprocess.Popen(["sleep", SLEEP])
        time.sleep(3600)

    return _on_bad(completions, start)


def text(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: "yes")


def nan(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: float("nan"))


def nothing(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: None)


def number(completions: list[str], **kwargs: Any) -> Any:
    return 1.0 if "bad" in completions else [1.0]


def several(completions: list[str], **kwargs: Any) -> list[Any]:
    return [1.0, 1.0] if "bad" in completions else [1.0]


def verdicts(completions: list[str], **kwargs: Any) -> list[Any]:
    return _on_bad(completions, lambda: Verdict("no answer", detail="said nothing"))


async def waits(completions: list[str], **kwargs: Any) -> list[Any]:
    import asyncio

    await asyncio.sleep(0)
    return _on_bad(completions, lambda: 0.0)


def shaped(completions: list[str], answer: list[str], *, bonus: float = 0.0, **kwargs: Any) -> Any:
    return [bonus + (c == a) for c, a in zip(completions, answer, strict=True)]


def logs(completions: list[str], log_metric: Any, **kwargs: Any) -> list[Any]:
    log_metric("seen", len(completions))
    return [1.0] * len(completions)


def sometimes(completions: list[str], *, fault: str, **kwargs: Any) -> Any:
    """A grader with one of the faults above on some completions, by their length."""
    marked = ["bad" if unlucky(c) else "good" for c in completions]
    return globals()[fault](marked)


def unlucky(completion: str) -> bool:
    return len(completion) % 3 == 0
