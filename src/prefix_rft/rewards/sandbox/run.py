"""One program in a process of its own: started, watched, ended, whatever it does.

The kernel keeps it in (:mod:`prefix_rft.rewards.sandbox.child` says how); its time, threads and
files are watched from here. Time is that in which it runs or sleeps: waiting for a processor does
not count, so that a busy machine changes no verdict.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from prefix_rft.rewards.process import TOKEN, scheduled
from prefix_rft.rewards.sandbox import child
from prefix_rft.rewards.sandbox.filter import program as filter_program
from prefix_rft.support.errors import UserError

FILE_BYTES = 8 << 20
"""The most that a file may hold, and what a program prints."""
OPEN_FILES = 32
FOLDER_BYTES, FOLDER_FILES = 64 << 20, 256
"""The most that its folder may hold."""
THREADS = 64
ANSWER_BYTES = 1 << 20
START_SECONDS = 30.0
LOOK_SECONDS = 0.01
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/urandom")
PACKAGES = ("site-packages", "dist-packages")
FIX = "use a kernel with Landlock (Linux 5.13) and seccomp, or say unsandboxed: true"


@dataclass
class Allowance:
    """What the programs of one completion may still use.

    Attributes:
        seconds: what is left to run or sleep.
        memory: megabytes beyond those of Python itself; None: any.
        isolate: lock them in.
    """

    seconds: float
    memory: int | None
    isolate: bool = True


@dataclass
class Outcome:
    """What came of a program.

    Attributes:
        fault: why it was ended, or how it ended badly; empty if it ended well.
        output: what it printed.
        answers: the child's message by step, where there is one.
    """

    fault: str = ""
    output: bytes = b""
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)


def refuse_where_impossible(isolate: bool) -> None:
    """Run an empty program.

    Raises:
        UserError: this machine cannot isolate programs.
    """
    run("", (), Allowance(10.0, 64, isolate))


def run(
    program: str,
    steps: Sequence[tuple[str, str]],
    allowance: Allowance,
    stdin: bytes = b"",
    name: str = "program",
    values: Sequence[Any] | None = None,
) -> Outcome:
    """Run a program, then the steps in its module; what it uses is taken from the allowance.

    Args:
        program: its source.
        steps: ``exec`` and a statement, or ``eval`` and an expression whose value is asked for.
        allowance: what it may use.
        stdin: what it can read.
        name: the name of its module; with ``__main__`` it is a script.
        values: what the function ``value_of`` gives it, by place, as ``child.encode`` has them.

    Raises:
        UserError: this machine cannot isolate programs.
        RuntimeError: no process of this kind can be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="prefix-rft-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as output,
    ):
        source.write(stdin)
        source.seek(0)
        asked = {"program": program, "name": name, "steps": list(steps), "folder": folder}
        if values is not None:
            asked["values"] = values
        guarded = _Guarded(asked, allowance, source, output)
        try:
            guarded.start()
            outcome = guarded.watch(Path(folder))
        finally:
            guarded.end()
        output.seek(0)
        outcome.output = output.read(FILE_BYTES)
    return outcome


class _Guarded:
    """A child process and the pipe that its answers come through."""

    def __init__(
        self, asked: dict[str, Any], allowance: Allowance, source: IO[bytes], output: IO[bytes]
    ) -> None:
        self.allowance = allowance
        limits = {
            "parent": os.getpid(),
            "seconds": allowance.seconds,
            "memory": allowance.memory,
            "file_bytes": FILE_BYTES,
            "open_files": OPEN_FILES,
            "isolate": allowance.isolate,
        }
        if allowance.isolate:
            limits |= locks()
        self.request = marshal.dumps({**asked, **limits})
        self.most = len(asked["steps"]) + 1
        self.requests, self.answers, self.process = _start(source, output)
        self.open, self.unread, self.read = True, b"", 0

    def start(self) -> None:
        """Send the request, and wait until the child has locked itself in."""
        with suppress(BrokenPipeError), os.fdopen(self.requests, "wb") as file:
            file.write(self.request)
        until = time.monotonic() + START_SECONDS
        # The program does not run yet: what comes first is the child's own word.
        while b"\n" not in self.unread and self.open and time.monotonic() < until:
            self._receive(START_SECONDS)
        line, _, self.unread = self.unread.partition(b"\n")
        message = json.loads(line or b"{}")
        if "refused" in message:
            why = message["refused"]
            raise UserError(f"programs cannot be isolated on this machine: {why}; {FIX}")
        if "ready" not in message:
            raise RuntimeError("the process for a program ended before the program began")
        self.began, self.first = time.monotonic(), self._usage()

    def watch(self, folder: Path) -> Outcome:
        """Wait for its end, or end it at a limit."""
        outcome = Outcome()
        while not (ended := self._has_ended()) and not outcome.fault:
            self._receive(LOOK_SECONDS)
            outcome.fault = self._over(folder)
        spent = self._spent()
        outcome.fault = outcome.fault or self._late(spent)
        self.allowance.seconds = max(0.0, self.allowance.seconds - spent)
        while ended and self.open and self.read <= ANSWER_BYTES:
            if not self._receive(0):
                break  # held open by a process that it left behind
        for message in _messages(self.unread, self.most):
            if "at" in message:
                outcome.answers.setdefault(message["at"], message)
            elif "raised" in message:
                outcome.fault = outcome.fault or f"raised {message['raised']}"
        if not outcome.fault:
            outcome.fault = _ending(self.end())
        return outcome

    def end(self) -> int:
        """Kill it, and whatever stayed in its group; its exit code."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.answers)
        return self.process.wait()

    def _receive(self, seconds: float) -> bool:
        """Read what has come within these seconds; whether something has."""
        if not self.open:
            time.sleep(min(seconds, LOOK_SECONDS / 10))
            return False
        if not select.select([self.answers], [], [], seconds)[0]:
            return False
        data = os.read(self.answers, 1 << 16)
        self.open, self.unread = bool(data), self.unread + data
        self.read += len(data)
        return bool(data)

    def _has_ended(self) -> bool:
        """Whether it has, seen without forgetting its number."""
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def _over(self, folder: Path) -> str:
        """The limit that it is over, in words."""
        if self._usage()[1] > THREADS:
            return f"more than {THREADS} threads"
        if self.read > ANSWER_BYTES:
            return f"values of more than {ANSWER_BYTES >> 20} MB"
        files = size = 0
        for entry in _files(folder):
            with suppress(OSError):  # gone, or hidden where nothing isolates
                files, size = files + 1, size + entry.stat(follow_symlinks=False).st_size
        if files > FOLDER_FILES or size > FOLDER_BYTES:
            return f"more than {FOLDER_FILES} files or {FOLDER_BYTES >> 20} MB of them"
        return self._late(self._spent())

    def _late(self, spent: float) -> str:
        return "out of time" if spent > self.allowance.seconds else ""

    def _spent(self) -> float:
        """Seconds that it has run, in all its threads, or slept."""
        ran = self._usage()[0] - self.first[0]
        waited = self._usage()[2] - self.first[2]
        return max(ran, time.monotonic() - self.began - waited)

    def _usage(self) -> tuple[float, int, float]:
        """Seconds that it ran, its threads, and seconds that it waited for a processor (Linux)."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text(errors="replace")
        except OSError:
            return 0.0, 1, 0.0
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(fields[17]), scheduled(self.process.pid)[1]


def _start(source: IO[bytes], output: IO[bytes]) -> tuple[int, int, subprocess.Popen[bytes]]:
    """The child, with the pipes to and from it."""
    theirs, requests = os.pipe()
    answers, ours = os.pipe()
    environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    if TOKEN in os.environ:  # ends with the grader, wherever it goes
        environment[TOKEN] = os.environ[TOKEN]
    try:
        process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            [sys.executable, "-S", "-s", "-P", child.__file__, str(theirs), str(ours)],
            stdin=source,
            stdout=output,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs, ours),
            start_new_session=True,
            env=environment,
        )
    except OSError as error:
        os.close(requests)
        os.close(answers)
        raise RuntimeError(f"no process can be started for a program: {error}") from error
    finally:
        os.close(theirs)
        os.close(ours)
    return requests, answers, process


@functools.cache
def locks() -> Mapping[str, Any]:
    """What a child needs to lock itself in: the filter of calls, and what may be read.

    Of Python, that is the standard library, and no package that is installed beside it.
    """
    try:
        steps = filter_program()
    except UserError as error:
        raise UserError(f"programs cannot be isolated on this machine: {error}; {FIX}") from error
    base = Path(sys.base_prefix, "lib")
    standard = Path(os.__file__).parent
    readable = [p for p in standard.iterdir() if p.name not in PACKAGES]
    for path in map(Path, LIBRARIES):
        if standard.resolve().is_relative_to(path.resolve()):  # the system's own Python
            readable += [p for p in path.iterdir() if not p.name.startswith("python")]
        else:
            readable.append(path)
    readable += [p for p in base.glob("lib*.so*") if p.is_file()]
    return {
        "filter": steps,
        "readable": [str(p) for p in readable if os.path.exists(p)],
        "listed": str(standard),  # where Python looks for the names of modules
    }


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files of a folder, one more than it may have at most."""
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > FOLDER_FILES:
                return
            yield entry


def _messages(data: bytes, most: int) -> Iterator[dict[str, Any]]:
    """The first lines, as many as the child writes, that are messages as the child writes them.

    A program may have written anything between and before them.
    """
    for line in data.split(b"\n", most)[:most]:
        with suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict) and type(message.get("at", 0)) is int:
                yield message


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else ""
    known = {s.value: s.name for s in signal.Signals}
    return f"signal {known.get(-code, -code)}"
