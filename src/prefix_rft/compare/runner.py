"""Run what a comparison still lacks, several at once; every run is a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from prefix_rft.compare.job import Job
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.orders import order_of
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0
LAST_LINES = 3
TAIL_BYTES = 16_384
"""Enough for the last line of metrics."""


@dataclass
class Running:
    """A process and its log."""

    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    path: Path


def run_all(
    board: Board,
    at_once: int,
    say: Callable[[str], None],
    show: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Run everything that is not done; returns a sentence for each run that failed.

    A run that fails does not stop the others, but those that wait for it never start.

    Args:
        board: the runs.
        at_once: the number of runs at a time.
        say: takes a line for each run that ended.
        show: takes what is going on, several times a second.
    """
    running: list[Running] = []
    failed: dict[Path, str] = {}
    former = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            for run in [r for r in running if r.process.poll() is not None]:
                running.remove(run)
                run.log.close()
                if run.process.returncode or board.reread(run.job) is None:
                    failed[run.job.folder] = f"{run.job.name}: {_last_words(run)}"
                    say(f"failed: {failed[run.job.folder]}")
                else:
                    say(f"done {_count(board)} of {board.total()}: {run.job.name}")
            busy = {r.job.folder for r in running}
            waiting = [
                j
                for j in board.jobs()
                if not board.done(j) and j.folder not in busy and j.folder not in failed
            ]
            able = [j for j in waiting if board.able(j)]
            for job in able[: at_once - len(running)]:
                try:
                    running.append(start(board, job, at_once))
                except UserError as error:  # no step is left within what it is to match
                    failed[job.folder] = f"{job.name}: {error}"
                    say(f"failed: {failed[job.folder]}")
            if not running and not able:
                break
            show(", ".join(f"{r.job.name}: {progress(r.job)}" for r in running))
            time.sleep(POLL_SECONDS)
    finally:
        stop(running)
        signal.signal(signal.SIGTERM, former)
    lost = [f"{j.name}: waits for a run that failed" for j in waiting]
    return [*failed.values(), *lost]


def progress(job: Job) -> str:
    """How far a run is, as far as its folder says."""
    if job.collects:
        return "collecting"
    if (job.folder / "eval").is_dir():
        return "evaluating"
    metrics = job.folder / "metrics.jsonl"
    if not metrics.is_file():
        return "starting"
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        steps = re.findall(rb'^{"step": (\d+)', file.read(), re.MULTILINE)
    return f"step {int(steps[-1])}" if steps else "starting"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _count(board: Board) -> int:
    return sum(board.record(j) is not None for j in board.jobs())


def start(board: Board, job: Job, at_once: int) -> Running:
    """Start the process of a run."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    order = job.folder.with_suffix(".job.json")
    write_text(order, json.dumps(order_of(board, job), indent=2) + "\n")
    path = job.folder.with_suffix(".log")
    log = path.open("ab")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if not torch.accelerator.is_available():
        threads = str(max(1, (os.cpu_count() or 1) // at_once))
        environment.setdefault("OMP_NUM_THREADS", threads)
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "prefix_rft.compare", str(order)],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    return Running(job, process, log, path)


def stop(running: list[Running]) -> None:
    """End the processes that still run, gently first."""
    for run in running:
        run.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for run in running:
        try:
            run.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
        run.log.close()


def _last_words(run: Running) -> str:
    """Why a run ended, as far as its log says."""
    lines = run.path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    words = " / ".join(line.strip() for line in lines[-LAST_LINES:])
    return f"{words or 'no word'} (exit {run.process.returncode}, see {run.path})"


def check_at_once(at_once: int) -> None:
    """Raise UserError for a number of runs that cannot be."""
    if at_once < 1:
        raise UserError(f"--jobs must be at least 1, got {at_once}")
