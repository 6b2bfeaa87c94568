"""Graders that go wrong. Each does so where the completion says ``bad``, else gives 1.0."""

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from prefix_rft.rewards.verdict import Verdict


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


def scribbles(completions: list[str], **kwargs: Any) -> list[Any]:
    """Writes rubbish to every file that is open."""

    def scribble() -> float:
        for fd in range(3, 64):
            try:
                os.write(fd, b"rubbish\n")
            except OSError:
                continue
        return 1.0

    return _on_bad(completions, scribble)


def children(completions: list[str], **kwargs: Any) -> list[Any]:
    """Starts a program that outlives the call, then waits for ever."""

    def start() -> None:
        subprocess.Popen(["sleep", "3601"])
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
