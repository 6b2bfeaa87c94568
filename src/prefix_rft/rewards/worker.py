"""The process in which a grader runs: reads items, answers with verdicts, may be killed any time.

One JSON line in, one JSON line out, over two pipes of its own, so that nothing a grader prints can
be taken for an answer. The limits are the kernel's: processor time through ``ITIMER_PROF``, whose
signal ends the process whatever it is doing, and address space through ``RLIMIT_AS``. Processor
time, not time on the clock, so that a busy machine or a larger pool does not change a verdict.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefix_rft.rewards.source import hash_of_source
from prefix_rft.rewards.verdict import ERROR, Verdict, values_of, verdict_of
from prefix_rft.support.errors import UserError
from prefix_rft.support.imports import load_function

PR_SET_PDEATHSIG = 1


def main(requests_fd: int, answers_fd: int, parent: int) -> None:
    """Serve until the other end closes."""
    die_with(parent)
    own = os.getpid()
    for fd in (requests_fd, answers_fd):
        os.set_inheritable(fd, False)  # a program that the grader starts has no part in this
    os.register_at_fork(after_in_child=lambda: _close(requests_fd, answers_fd))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def answer(line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(answers_fd, view) :]

    requests = os.fdopen(requests_fd, "rb")
    setup = json.loads(requests.readline())
    try:
        function = load_function(setup["function"], Path(setup["folder"]))
        signature = signature_of(function)
        options = prepared(function, setup)
        if graders := getattr(function, "graders", None):  # what it calls decides a verdict, too
            others = [hash_of_source(other) for other in graders(options)]
            signature["source"] = ",".join([signature["source"], *others])
        limit_memory(setup["memory"])
    except BaseException as error:  # noqa: BLE001  (a stranger's module may do anything)
        known = isinstance(error, UserError)
        words = str(error) if known else f"reward '{setup['function']}': {_say(error)}"
        answer(_line({"failed": words}))
        return
    answer(_line({"ready": signature}))
    while line := requests.readline():
        for number, item in json.loads(line):
            # Written beforehand: afterwards there may be no memory to write it with.
            no_memory = _line({"item": number, "memory": True})
            signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
            verdict = grade(function, item, options)
            if os.getpid() != own:
                os._exit(0)  # the grader forked, and this is its child
            signal.setitimer(signal.ITIMER_PROF, 0)
            if verdict is None:
                answer(no_memory)
                return  # what is left of this process is not to be trusted
            # A thread that goes on would be charged to the items that follow.
            last = threading.active_count() > 1
            answer(_line({"item": number, "verdict": _plain(verdict), "last": last}))


def signature_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Its parameters by name, its marks, and its source."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {
        "parameters": [p.name for p in parameters if p.kind in named],
        "required": [p.name for p in parameters if p.kind in named and p.default is p.empty],
        "keywords": others and not getattr(function, "named_only", False),
        "tests_gold": bool(getattr(function, "tests_gold", False)),
        "own_limits": bool(getattr(function, "own_limits", False)),
        "source": hash_of_source(function),
    }


def prepared(function: Callable[..., Any], setup: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of every call: its options, and the limits that it is to keep itself.

    Raises:
        UserError: it cannot be used here, or an option stands for a limit.
    """
    options = dict(setup["options"])
    if getattr(function, "prepare", None):
        function.prepare(options)  # pyright: ignore[reportFunctionMemberAccess]
    if getattr(function, "own_limits", False):
        limits = {"timeout": setup["seconds"], "memory": setup["memory"]}
        if given := sorted(limits.keys() & options):
            raise UserError(
                f"reward '{setup['function']}': {' and '.join(given)} are limits, no options: give "
                "Limits"
            )
        options |= limits
    return options


def grade(
    function: Callable[..., Any], item: dict[str, Any], options: dict[str, Any]
) -> Verdict | None:
    """One completion's verdict; None if memory ran out, ``error`` for whatever else is raised."""
    lists = {name: [value] for name, value in item.items()}
    try:
        returned = function(**lists, **options)
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        return _only(returned)
    except MemoryError:
        return None
    except BaseException as error:  # noqa: BLE001  (the reason for this process)
        return Verdict(ERROR, detail=f"raised {_say(error)}")


def _only(returned: Any) -> Verdict:
    """The verdict in a list of one; anything else is an error of the grader."""
    try:
        return verdict_of(values_of(returned, 1)[0])
    except UserError as error:
        return Verdict(ERROR, detail=str(error))


def _plain(verdict: Verdict) -> list[Any]:
    return [verdict.status, verdict.reward, verdict.detail, verdict.answer]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _say(error: BaseException) -> str:
    """``ValueError: ...`` on one line, also of an error that cannot say what it is."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  (its own __str__ fails)
        text = "(no message)"
    return " ".join(f"{type(error).__name__}: {text}".split())


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def die_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def limit_memory(megabytes: int | None) -> None:
    """Let the address space grow by this much beyond what the imports took (Linux)."""
    if megabytes is None or sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
