"""One killable process with its two pipes, seen from the parent."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from prefix_rft.rewards.worker import main; main(*map(int, sys.argv[2:]))"
)
TOKEN = "PREFIX_RFT_GRADER"  # noqa: S105  (the name of an environment variable)
LONGEST_LINE = 1 << 20
END_SECONDS = 0.5
START_SECONDS = 0.05


class DisturbedError(Exception):
    """What came out of a worker's pipe was not written by the worker."""


class Worker:
    """A grader's process, and the items it has been given and not answered yet.

    Attributes:
        given: numbers of these items, in order.
        since: when the first of them began, as far as is known here.
        ready: it has imported the grader.
        used: it has been given items before.

    Raises:
        UserError: no process can be started.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        child_requests, self.requests = os.pipe()
        self.answers, child_answers = os.pipe()
        os.set_blocking(self.requests, False)  # a worker that does not read must not stop us
        self.token = secrets.token_hex(8)
        fds = (child_requests, child_answers)
        arguments = [json.dumps(sys.path), *map(str, fds), str(os.getpid())]
        try:
            self.process = subprocess.Popen(  # noqa: S603  (our own interpreter)
                [sys.executable, "-c", BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONHASHSEED": "0",  # the same order of sets, so the same verdict
                    "OMP_NUM_THREADS": "1",
                    TOKEN: self.token,
                },
            )
        except (OSError, TypeError) as error:
            os.close(self.requests)
            os.close(self.answers)
            raise UserError(f"no process can be started for a reward: {error}") from error
        finally:
            for fd in fds:
                os.close(fd)
        self.given: deque[int] = deque()
        self.since = time.monotonic()
        self.ready = False
        self.used = False
        self._unsent = memoryview(b"")
        self._unread = b""
        self._watch: tuple[float, float, float] | None = None
        self.send(json.dumps(setup))

    @property
    def idle(self) -> bool:
        """Whether it waits for items."""
        return self.ready and not self.given

    @property
    def sending(self) -> bool:
        """Whether something is left to be written once the pipe has room."""
        return bool(self._unsent)

    def restart_clock(self) -> None:
        """An item begins now."""
        self.since, self._watch = time.monotonic(), None

    def send(self, line: str) -> None:
        """Queue a line."""
        self._unsent = memoryview(bytes(self._unsent) + line.encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes; a worker that is gone is noticed when its answers are read."""
        with suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self.requests, self._unsent) :]

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have come in; None if the other end is closed.

        Raises:
            DisturbedError: what came in is no message of a worker's.
        """
        data = os.read(self.answers, 1 << 16)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > LONGEST_LINE:
            raise DisturbedError("a line without end")
        return [_message(line) for line in lines]

    def overslept(self, seconds: float) -> bool:
        """Whether the current item has slept, or run, for more than ``seconds``.

        Time in which the process wants to run and is not let does not count (Linux; elsewhere all
        time counts as sleep). The watch begins at the first call for an item.
        """
        now = time.monotonic()
        run, waited = scheduled(self.process.pid)
        if self._watch is None:
            self._watch = now, run, waited
            return False
        ran = run - self._watch[1]
        slept = (now - self._watch[0]) - ran - (waited - self._watch[2])
        return ran > seconds or slept > seconds

    def end(self) -> int:
        """Kill the process and all that it has started; its exit code.

        One that is ending by itself is given a moment, so that the code is its own.
        """
        os.close(self.requests)
        os.close(self.answers)
        # The leader is not waited for yet, so its group cannot be anyone else's.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        _kill_marked(self.token)
        return code

    def let_end(self) -> None:
        """Wait a moment for a process whose pipes are closed."""
        deadline = time.monotonic() + END_SECONDS
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, self.process.pid, flags) is not None:
                return
            time.sleep(0.005)


def _message(line: bytes) -> dict[str, Any]:
    """A line as a message with the keys and types that a worker writes."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise DisturbedError("no JSON") from None
    kinds = {"failed": str, "ready": dict, "item": int, "memory": bool, "verdict": list}
    kinds["last"] = bool
    if not isinstance(message, dict) or not message:
        raise DisturbedError("no message")
    for key, value in message.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            raise DisturbedError("no message")
    return message


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that the process's main thread has run, and waited for a processor."""
    try:
        run, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(run) / 1e9, int(waited) / 1e9


def _kill_marked(token: str) -> None:
    """Kill processes that carry a worker's token: programs that left its group (Linux).

    A program that is just being started has no environment yet, and is looked at again.
    """
    mark = f"{TOKEN}={token}".encode()
    until = time.monotonic() + START_SECONDS
    while _kill_with(mark) and time.monotonic() < until:
        time.sleep(START_SECONDS / 10)


def _kill_with(mark: bytes) -> bool:
    """Kill processes with this in their environment; whether there are some without any yet."""
    starting = False
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = entry.read_bytes()
            if not environment:
                # A kernel's thread and a process that has ended have no program either.
                starting |= bool(os.readlink(entry.with_name("exe")))
        except OSError:  # someone else's, or gone
            continue
        if mark in environment:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(entry.parent.name), signal.SIGKILL)
    return starting
