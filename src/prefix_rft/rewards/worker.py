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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefix_rft.errors import UserError
from prefix_rft.imports import load_function
from prefix_rft.rewards.verdict import ERROR, Verdict, verdict_of

PR_SET_PDEATHSIG = 1


def main(requests_fd: int, answers_fd: int, parent: int) -> None:
    """Serve until the other end closes."""
    die_with(parent)
    for fd in (requests_fd, answers_fd):
        os.set_inheritable(fd, False)  # a program that the grader starts has no part in this
    with os.fdopen(requests_fd, "rb") as requests, os.fdopen(answers_fd, "wb") as answers:

        def answer(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()

        setup = json.loads(requests.readline())
        try:
            function = load_function(setup["function"], Path(setup["folder"]))
        except UserError as error:
            answer({"failed": str(error)})
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a stranger's module)
            answer({"failed": f"reward '{setup['function']}' cannot be imported: {_say(error)}"})
            return
        limit_memory(setup["memory"])
        answer({"ready": signature_of(function)})
        while line := requests.readline():
            for item in json.loads(line):
                signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
                verdict = grade(function, item, setup["options"])
                signal.setitimer(signal.ITIMER_PROF, 0)
                answer({"status": verdict.status, "reward": verdict.reward, "why": verdict.detail})
                if verdict.detail == OUT_OF_MEMORY:
                    return  # what is left of this process is not to be trusted


OUT_OF_MEMORY = "ran out of memory"


def signature_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Its parameters by name, whether it reads other keywords, and whether it judges golds."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {
        "parameters": [p.name for p in parameters if p.kind in named],
        "keywords": others and not getattr(function, "named_only", False),
        "tests_gold": bool(getattr(function, "tests_gold", False)),
    }


def grade(function: Callable[..., Any], item: dict[str, Any], options: dict[str, Any]) -> Verdict:
    """One completion's verdict; whatever a grader raises becomes ``error``."""
    lists = {name: [value] for name, value in item.items()}
    try:
        returned = function(**lists, **options)
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        return _only(returned)
    except MemoryError:
        return Verdict(ERROR, detail=OUT_OF_MEMORY)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (the reason for this process)
        return Verdict(ERROR, detail=f"raised {_say(error)}")


def _only(returned: Any) -> Verdict:
    """The verdict in a list of one; anything else is an error of the grader."""
    if isinstance(returned, (str, bytes)) or not hasattr(returned, "__iter__"):
        kind = type(returned).__name__
        detail = f"returned a {kind}; it must return a list with one number per completion"
        return Verdict(ERROR, detail=detail)
    values = list(returned)
    if len(values) != 1:
        return Verdict(ERROR, detail=f"returned {len(values)} rewards for 1 completion")
    try:
        return verdict_of(values[0])
    except UserError as error:
        return Verdict(ERROR, detail=str(error))


def _say(error: BaseException) -> str:
    """``ValueError: ...`` on one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:200]


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
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
