"""Graders in processes that can be killed: a verdict for every item, whatever the grader does.

Why not a library's pool: here a limit holds for one item, is measured in processor time (so that
verdicts do not depend on the size of the pool), ends the grader's children too, and needs neither
pickle nor a second import of the user's main module.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefix_rft.rewards.limits import GraderCall, Limits
from prefix_rft.rewards.process import DisturbedError, Worker
from prefix_rft.rewards.verdict import TIMEOUT, Verdict
from prefix_rft.support.errors import UserError

START_SECONDS = 120.0
SLEEP_FACTOR = 2
"""Time that an item may sleep, in units of its processor time: for graders that wait."""
OWN_FACTOR = 20
"""The same of a grader that keeps limits itself: it sleeps while its programs wait their turn."""
CHUNK = 16
START_ATTEMPTS = 3
LONGEST_WAIT = 5.0


class GraderPool:
    """A fixed number of workers that run one grader; started when they are needed.

    Args:
        function: ``package.module:function`` with TRL's reward signature.
        folder: the folder where modules beside the recipe are looked for.
        options: keyword arguments added to every call.
        workers: processes; by default one per core of this process's share, at most 8.
        limits: the limits of one item.
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
        self._offset = secrets.randbelow(2**40)  # a forged answer would have to know the number
        self._failures = 0
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._close = weakref.finalize(self, _finalize, self.workers, self._selector, os.getpid())

    def start(self) -> dict[str, Any]:
        """What the worker says of the function, see :func:`prefix_rft.rewards.worker.signature_of`.

        Raises:
            UserError: it cannot be imported.
        """
        if not self.signature:
            self._run(GraderCall([]), until_ready=True)
        return self.signature

    def grade(
        self, items: Sequence[Mapping[str, Any]], tick: Callable[[int], None] = lambda done: None
    ) -> list[Verdict]:
        """A verdict for each item, in order.

        Args:
            items: the arguments of the reward function for one completion each, as plain data.
            tick: called now and then with how many items have a verdict.

        Raises:
            UserError: the reward function cannot be imported.
            TypeError, ValueError: an item that JSON cannot carry.
        """
        call = GraderCall([json.dumps(item) for item in items], tick)
        self._run(call)
        verdicts = [v for v in call.verdicts if v is not None]
        if len(verdicts) != len(items):
            raise RuntimeError(f"{len(verdicts)} verdicts for {len(items)} items")
        return verdicts

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        _end_all(self.workers, self._selector)

    def _run(self, call: GraderCall, until_ready: bool = False) -> None:
        with self._lock:
            call.offset, self._offset = self._offset, self._offset + len(call.items)
            wanted = 1 if until_ready else min(self.size, len(call.items))
            try:
                self._end_dead()
                while (
                    call.open
                    or any(w.given for w in self.workers)
                    or (until_ready and not self.signature)
                ):
                    self._make_room(call)
                    while len(self.workers) < wanted:
                        self._start()
                    for worker in [w for w in self.workers if w.idle]:
                        self._give(worker, call)
                    for key, _ in self._selector.select(self._patience()):
                        self._serve(key, call)
                    self._stop_late(call)
                    call.tick(len(call.items) - len(call.waiting) - len(call.again) - self._given())
            except BaseException:
                self.close()  # an interrupted call must not leave answers for the next one
                raise

    def _given(self) -> int:
        """Items that workers have and have not answered."""
        return sum(len(w.given) for w in self.workers)

    # ---- workers -------------------------------------------------------------------------------

    def _start(self) -> None:
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            raise UserError("SIGCHLD is ignored in this process, so graders cannot be watched")
        worker = Worker(self.setup)
        self.workers.append(worker)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        self._listen(worker)

    def _listen(self, worker: Worker) -> None:
        """Wake up when the worker's pipe has room, while something is to be written."""
        listening = worker.requests in self._selector.get_map()
        if worker.sending and not listening:
            self._selector.register(worker.requests, selectors.EVENT_WRITE, worker)
        elif listening and not worker.sending:
            self._selector.unregister(worker.requests)

    def _end_dead(self) -> None:
        """Forget workers that ended between calls."""
        for worker in [w for w in self.workers if w.process.poll() is not None]:
            self._end(worker)

    def _make_room(self, call: GraderCall) -> None:
        """An item's second attempt is made in a fresh worker: end an old one if need be."""
        if call.again and not any(not w.used for w in self.workers):
            idle = next((w for w in self.workers if w.idle), None)
            if idle:
                self._end(idle)

    def _give(self, worker: Worker, call: GraderCall) -> None:
        """Hand an idle worker its next items; fewer towards the end, so that all end together."""
        if call.again and not worker.used:
            chunk = [call.again.popleft()]
        else:
            size = max(1, min(CHUNK, len(call.waiting) // (2 * self.size)))
            chunk = [call.waiting.popleft() for _ in range(min(size, len(call.waiting)))]
        if chunk:
            worker.given.extend(chunk)
            worker.used = True
            worker.restart_clock()
            worker.send(call.line(chunk))
            self._listen(worker)

    def _serve(self, key: selectors.SelectorKey, call: GraderCall) -> None:
        worker: Worker = key.data
        if worker not in self.workers:  # ended a moment ago
            return
        if key.fd == worker.requests:
            worker.flush()
            self._listen(worker)
            return
        try:
            messages = worker.receive()
            if messages is None:
                self._bury(worker, call)
            for message in messages or ():
                if not self._take(worker, message, call):
                    return
        except DisturbedError:  # the grader wrote into our pipe
            code = self._end(worker)
            if not worker.ready:
                self._failed_to_start(code)
            call.blame(worker, "the grader disturbed its process")
            call.take_back(worker)

    def _take(self, worker: Worker, message: dict[str, Any], call: GraderCall) -> bool:
        """Take one message; whether the worker goes on."""
        if not worker.ready:
            if "failed" in message:
                raise UserError(message["failed"])
            if "ready" not in message:
                raise DisturbedError("a worker says first that it is ready")
            worker.ready, self.signature, self._failures = True, message["ready"], 0
            return True
        if not worker.given or message.get("item") != call.offset + worker.given[0]:
            raise DisturbedError("an answer to no question")
        worker.restart_clock()
        if "memory" in message:
            self._end(worker)
            call.blame(worker, f"ran out of memory ({self.limits.memory} MB)")
            call.take_back(worker)
            return False
        try:
            verdict = Verdict(*message["verdict"])
        except (KeyError, TypeError, UserError) as error:
            raise DisturbedError("no verdict") from error
        call.verdicts[worker.given.popleft()] = verdict
        if message.get("last"):  # a thread of the grader's goes on in there
            self._end(worker)
            call.take_back(worker)
            return False
        return True

    def _bury(self, worker: Worker, call: GraderCall) -> None:
        """A worker has ended: find out why, and put its items back in the queue."""
        worker.let_end()
        code = self._end(worker)
        if not worker.ready:
            self._failed_to_start(code)
        if worker.given and code == -signal.SIGPROF:
            call.verdicts[worker.given.popleft()] = self._too_slow("of processor time")
        call.blame(worker, f"the grader's process ended ({_exit(code)})")
        call.take_back(worker)

    def _failed_to_start(self, code: int) -> None:
        """Start another one, unless the grader was never imported or this goes on."""
        self._failures += 1
        if not self.signature or self._failures >= START_ATTEMPTS:
            raise UserError(
                f"the process for reward '{self.function}' ended while importing it ({_exit(code)})"
            )

    def _stop_late(self, call: GraderCall) -> None:
        """Kill workers that sleep too long, or run on although their time is up."""
        now = time.monotonic()
        for worker in list(self.workers):
            if not worker.ready and now - worker.since > START_SECONDS:
                raise UserError(
                    f"reward '{self.function}' took more than {START_SECONDS:g} s to import"
                )
            if not worker.given or now - worker.since < self.limits.seconds:
                continue
            factor = OWN_FACTOR if self.signature["own_limits"] else SLEEP_FACTOR
            if worker.overslept(factor * self.limits.seconds):
                self._end(worker)
                call.verdicts[worker.given.popleft()] = self._too_slow("and slept")
                call.take_back(worker)

    def _too_slow(self, how: str) -> Verdict:
        return Verdict(TIMEOUT, detail=f"more than {self.limits.seconds:g} s {how}")

    def _patience(self) -> float:
        """Seconds until the next worker can be late."""
        now = time.monotonic()
        waits = []
        for worker in [w for w in self.workers if w.given or not w.ready]:
            limit = self.limits.seconds if worker.ready else START_SECONDS
            left = worker.since + limit - now
            # From then on its sleep is watched, at short intervals.
            waits.append(left if left > 0 else max(0.01, self.limits.seconds / 10))
        return min([*waits, LONGEST_WAIT]) + 0.001

    def _end(self, worker: Worker) -> int:
        self.workers.remove(worker)
        return _end(worker, self._selector)


def default_workers() -> int:
    """One per core of this process's share of the machine, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (cores or 1) // max(1, processes)))


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    known = {s.value: s.name for s in signal.Signals}
    return f"signal {known.get(-code, -code)}"


def _end(worker: Worker, selector: selectors.BaseSelector) -> int:
    for fd in (worker.answers, worker.requests):
        if fd in selector.get_map():
            selector.unregister(fd)
    return worker.end()


def _end_all(workers: list[Worker], selector: selectors.BaseSelector) -> None:
    while workers:
        _end(workers.pop(), selector)


def _finalize(workers: list[Worker], selector: selectors.BaseSelector, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child, whose workers these are not
        _end_all(workers, selector)
        selector.close()
