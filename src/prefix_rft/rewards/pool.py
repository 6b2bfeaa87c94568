"""Graders in processes that can be killed: a verdict for every item, whatever the grader does.

Why not a library's pool: here a limit holds for one item, is measured in processor time (so that
verdicts do not depend on the size of the pool), ends the grader's children too, and needs neither
pickle nor a second import of the user's main module.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefix_rft.errors import UserError
from prefix_rft.rewards.verdict import ERROR, TIMEOUT, Verdict
from prefix_rft.rewards.worker import OUT_OF_MEMORY

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from prefix_rft.rewards.worker import main; main(*map(int, sys.argv[2:]))"
)
START_SECONDS = 120
WALL_FACTOR = 3
"""Time on the clock an item may take, in units of its processor time: for graders that wait."""
CHUNK = 16
ATTEMPTS = 2
"""A death may be an earlier item's doing, so an item is blamed for the second one."""


@dataclass(frozen=True)
class Limits:
    """What one item may use: processor ``seconds``, and ``memory`` in megabytes (None: any)."""

    seconds: float = 5.0
    memory: int | None = 2048

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"a reward's timeout must be a positive number, got {self.seconds}")
        if self.memory is not None and self.memory < 1:
            raise UserError(f"a reward's memory must be at least 1 megabyte, got {self.memory}")


@dataclass
class Worker:
    """One process, its pipes, and the items it has been given and not answered yet."""

    process: subprocess.Popen[bytes]
    requests: int
    answers: int
    since: float
    ready: bool = False
    unread: bytes = b""
    given: deque[int] = field(default_factory=deque)


@dataclass
class Job:
    """The items of one call, as JSON lines, and what is known about them."""

    lines: list[str]
    waiting: deque[int] = field(init=False)
    verdicts: list[Verdict | None] = field(init=False)
    attempts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.lines)))
        self.verdicts = [None] * len(self.lines)
        self.attempts = [0] * len(self.lines)

    def blame(self, index: int, why: str) -> None:
        """A worker fell at this item: once more in a fresh one, then it is the item's doing."""
        self.attempts[index] += 1
        if self.attempts[index] < ATTEMPTS:
            self.waiting.appendleft(index)
        else:
            self.verdicts[index] = Verdict(ERROR, detail=why)

    def take_back(self, worker: Worker) -> None:
        """The items of a worker that is gone."""
        self.waiting.extendleft(reversed(worker.given))
        worker.given.clear()


class GraderPool:
    """A fixed number of workers that run one grader; started when they are needed.

    Args:
        function: ``package.module:function`` with TRL's reward signature.
        folder: where modules beside the recipe are looked for.
        options: keyword arguments added to every call.
        workers: processes; by default one per core of this process's share, at most 8.
        limits: of one item.
    """

    def __init__(
        self,
        function: str,
        folder: Path = Path(),
        options: Mapping[str, Any] | None = None,
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"reward workers must be at least 1, got {workers}")
        self.function = function
        self.limits = limits or Limits()
        self.size = workers or default_workers()
        self.signature: dict[str, Any] = {}
        self.setup = {
            "function": function,
            "folder": str(Path(folder).resolve()),
            "options": dict(options or {}),
            "seconds": self.limits.seconds,
            "memory": self.limits.memory,
        }
        self.workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._close = weakref.finalize(self, _finalize, self.workers, self._selector, os.getpid())

    def start(self) -> dict[str, Any]:
        """What the worker says of the function, see :func:`prefix_rft.rewards.worker.signature_of`.

        Raises:
            UserError: it cannot be imported.
        """
        if not self.signature:
            self._run(Job([]), until_ready=True)
        return self.signature

    def grade(self, items: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict for each item, in order.

        Args:
            items: the arguments of the reward function for one completion each, as plain data.

        Raises:
            UserError: the reward function cannot be imported.
        """
        job = Job([json.dumps(item) for item in items])
        self._run(job)
        return [v for v in job.verdicts if v is not None]

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        _end_all(self.workers, self._selector)

    def _run(self, job: Job, until_ready: bool = False) -> None:
        wanted = 1 if until_ready else min(self.size, len(job.lines))
        try:
            while (
                job.waiting
                or any(w.given for w in self.workers)
                or (until_ready and not self.signature)
            ):
                while len(self.workers) < wanted:
                    self._start()
                for worker in [w for w in self.workers if w.ready and not w.given]:
                    self._give(worker, job)
                for key, _ in self._selector.select(self._patience()):
                    self._read(key.data, job)
                self._stop_late(job)
        except BaseException:
            self.close()  # an interrupted call must not leave answers for the next one
            raise

    # ---- workers -------------------------------------------------------------------------------

    def _start(self) -> None:
        child_requests, requests = os.pipe()
        answers, child_answers = os.pipe()
        fds = (child_requests, child_answers)
        command = [sys.executable, "-c", BOOT, json.dumps(sys.path), *map(str, fds)]
        process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            [*command, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
            # The same order of sets, and so the same verdict, in every worker.
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        for fd in fds:
            os.close(fd)
        worker = Worker(process, requests, answers, time.monotonic())
        self.workers.append(worker)
        self._selector.register(answers, selectors.EVENT_READ, worker)
        _send(requests, json.dumps(self.setup))

    def _give(self, worker: Worker, job: Job) -> None:
        """Hand an idle worker its next items; fewer towards the end, so that all end together."""
        size = max(1, min(CHUNK, len(job.waiting) // (2 * self.size)))
        chunk = [job.waiting.popleft() for _ in range(min(size, len(job.waiting)))]
        if chunk:
            worker.given.extend(chunk)
            worker.since = time.monotonic()
            _send(worker.requests, "[" + ",".join(job.lines[i] for i in chunk) + "]")

    def _read(self, worker: Worker, job: Job) -> None:
        data = os.read(worker.answers, 1 << 16)
        if not data:
            self._bury(worker, job)
            return
        *complete, worker.unread = (worker.unread + data).split(b"\n")
        for line in complete:
            worker.since = time.monotonic()
            try:
                message = json.loads(line)
            except ValueError:  # the grader wrote into our pipe
                self._end(worker)
                job.blame(worker.given.popleft(), "the grader disturbed its process")
                job.take_back(worker)
                return
            if "failed" in message:
                raise UserError(message["failed"])
            if "ready" in message:
                worker.ready, self.signature = True, message["ready"]
                continue
            index = worker.given.popleft()
            verdict = Verdict(message["status"], message["reward"], message["why"])
            if verdict.detail == OUT_OF_MEMORY:
                self._end(worker)
                job.blame(index, f"{OUT_OF_MEMORY} ({self.limits.memory} MB)")
                job.take_back(worker)
                return
            job.verdicts[index] = verdict

    def _bury(self, worker: Worker, job: Job) -> None:
        """A worker has ended: find out why, and put its items back in the queue."""
        code = self._end(worker)
        if not worker.ready:
            raise UserError(
                f"the process for reward '{self.function}' ended while importing it ({_exit(code)})"
            )
        if worker.given and code == -signal.SIGPROF:
            job.verdicts[worker.given.popleft()] = self._too_slow("of processor time")
        elif worker.given:
            why = f"the grader's process ended ({_exit(code)})"
            job.blame(worker.given.popleft(), why)
        job.take_back(worker)

    def _stop_late(self, job: Job) -> None:
        """Kill workers that are over the limit on the clock."""
        now = time.monotonic()
        for worker in list(self.workers):
            if not worker.ready and now - worker.since > START_SECONDS:
                raise UserError(
                    f"reward '{self.function}' took more than {START_SECONDS} s to import"
                )
            if worker.given and now - worker.since > WALL_FACTOR * self.limits.seconds:
                self._end(worker)
                how = f"x {WALL_FACTOR} on the clock"
                job.verdicts[worker.given.popleft()] = self._too_slow(how)
                job.take_back(worker)

    def _too_slow(self, how: str) -> Verdict:
        return Verdict(TIMEOUT, detail=f"more than {self.limits.seconds:g} s {how}")

    def _patience(self) -> float:
        """Seconds until the next worker can be late."""
        limit = WALL_FACTOR * self.limits.seconds
        busy = [w for w in self.workers if w.given or not w.ready]
        ends = [w.since + (limit if w.ready else START_SECONDS) for w in busy]
        return max(0.0, min(ends, default=0.0) - time.monotonic()) + 0.01

    def _end(self, worker: Worker) -> int:
        """Kill a worker and its children; its exit code."""
        self.workers.remove(worker)
        return _end(worker, self._selector)


def default_workers() -> int:
    """One per core of this process's share of the machine, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (cores or 1) // max(1, processes)))


def _send(fd: int, line: str) -> None:
    """Write a line; a worker that is gone is noticed when its answers are read."""
    data = memoryview(line.encode() + b"\n")
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(fd, data) :]


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _end(worker: Worker, selector: selectors.BaseSelector) -> int:
    selector.unregister(worker.answers)
    os.close(worker.requests)
    os.close(worker.answers)
    # The leader is not waited for yet, so its group cannot be anyone else's.
    with suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    return worker.process.wait()


def _end_all(workers: list[Worker], selector: selectors.BaseSelector) -> None:
    while workers:
        _end(workers.pop(), selector)


def _finalize(workers: list[Worker], selector: selectors.BaseSelector, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child, whose workers these are not
        _end_all(workers, selector)
        selector.close()
