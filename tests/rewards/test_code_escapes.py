"""What a program may not do, it does not: cheat, go over its limits, get out."""

import ctypes
import errno
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from escapes import CALLS, ESCAPES, EXCESSES, FORGERIES, IMPORTS, SECRET, TRY

import prefix_rft
from prefix_rft.rewards import Verdict, load_rewards
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.sandbox import Allowance, refuse_where_impossible, run
from prefix_rft.rewards.sandbox.child import decode
from prefix_rft.rewards.sandbox.run import locks
from prefix_rft.support.errors import UserError
from tables import rest_slow

SOURCE = str(Path(prefix_rft.__file__).parents[1])
SECONDS = 0.5
Judge = Callable[[str, str], Verdict]


def why_not() -> str:
    """Why this machine cannot isolate programs; empty where it can."""
    try:
        refuse_where_impossible(isolate=True)
    except UserError as error:
        return str(error)
    return ""


WHY_NOT = why_not()


def kernel_can() -> bool:
    """Whether the kernel has what it takes, asked past all of our code."""
    known = platform.machine() in ("x86_64", "aarch64")
    if sys.platform != "linux" or not known:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    # A filter at no address is refused for that, or for the right to set one, where there are any.
    library.prctl(22, 2, None, 0, 0)
    filters = ctypes.get_errno() in (errno.EFAULT, errno.EACCES)
    return filters and library.syscall(444, None, 0, 1) > 0


def test_programs_are_isolated_where_the_kernel_can() -> None:
    """So that what is tried below is tried wherever it can be."""
    assert (WHY_NOT == "") == kernel_can(), WHY_NOT


def graded(**options: object) -> Graded:
    spec = {"name": "code", "timeout": SECONDS, "memory": 64, "workers": 1, **options}
    (reward,), _ = load_rewards(spec)
    assert isinstance(reward, Graded)
    return reward


def judge_of(reward: Graded) -> Judge:
    def judge(program: str, test: str) -> Verdict:
        reward(completions=[program], tests=[[test]])
        return reward.verdicts[0]

    return judge


MODES = ("isolated", "unsandboxed")
HERE = MODES[bool(WHY_NOT)]
"""What the default suite tries in full."""
ALIKE = ("runs for ever", "breaks the process", "prints for ever", "threads without end")


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[str, Judge]]:
    """Judges by mode; without isolation where this machine refuses it, which is seen here."""
    rewards = {"unsandboxed": graded(unsandboxed=True)}
    if WHY_NOT:
        with pytest.raises(UserError, match="programs cannot be isolated on this machine"):
            graded()
    else:
        rewards["isolated"] = graded()
    yield {mode: judge_of(reward) for mode, reward in rewards.items()}
    for reward in rewards.values():
        reward.close()


def in_modes(names: Iterable[str], alike: Sequence[str]) -> list[Any]:
    """Each case in each mode; in the default suite, all in one, and some of each kind in both."""
    return rest_slow(product(MODES, names), lambda mode, name: mode == HERE or name in alike)


@pytest.mark.parametrize(("mode", "name"), in_modes(FORGERIES, ("leaves", "writes answers")))
def test_a_forgery_is_wrong(judges: dict[str, Judge], mode: str, name: str) -> None:
    if mode in judges:  # else it was seen to be refused
        verdict = judges[mode](FORGERIES[name], f"assert f(2) == {SECRET}")
        assert (verdict.status, verdict.reward) == ("wrong", 0.0), verdict


def test_a_forger_may_also_be_right(judges: dict[str, Judge]) -> None:
    """So that the tests above fail at what the program does, and not at how it is run."""
    for name, status in (("replaces the streams", "correct"), ("writes answers", "wrong")):
        program = FORGERIES[name] + f"\ndef f(x): return {SECRET}"
        assert judges[HERE](program, f"assert f(2) == {SECRET}").status == status


@pytest.mark.parametrize(("mode", "name"), in_modes(EXCESSES, ALIKE))
def test_an_excess_is_wrong_and_ends_soon(judges: dict[str, Judge], mode: str, name: str) -> None:
    if mode in judges:
        program, word = EXCESSES[name]
        began = time.monotonic()
        verdict = judges[mode](program, "assert f(2) == 3")
        assert (verdict.status, verdict.reward) == ("wrong", 0.0), verdict
        assert word in verdict.detail, verdict
        assert time.monotonic() - began < 30 * SECONDS


# ---- out of the process ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[Judge | None]:
    if WHY_NOT:
        with pytest.raises(UserError, match="programs cannot be isolated on this machine"):
            graded()
        yield None
        return
    reward = graded()

    def of(program: str, test: str) -> Verdict:
        (worker,) = reward.pool.workers
        reward(completions=[program], tests=[[test]])
        assert reward.pool.workers == [worker], "the grader's process was ended"
        return reward.verdicts[0]

    reward(completions=["def f(): return 1"], tests=[["assert f() == 1"]])
    assert reward.verdicts[0].status == "correct"
    yield of
    reward.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A user's folder, which is as it was afterwards."""
    files = {"own": "mine", ".ssh/id_ed25519": "key"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    mode, when = (tmp_path / "own").stat().st_mode, (tmp_path / "own").stat().st_mtime_ns
    yield tmp_path
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(files)
    assert all((tmp_path / name).read_text() == text for name, text in files.items())
    assert (tmp_path / "own").stat().st_mode == mode
    assert (tmp_path / "own").stat().st_mtime_ns == when


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is listened on, and that nobody has come to afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("name", [*ESCAPES, *IMPORTS])
def test_an_escape_is_refused(locked: Judge | None, place: Path, port: int, name: str) -> None:
    if locked is None:
        return
    told = "ImportError" if name in IMPORTS else "PermissionError"
    act = {**ESCAPES, **IMPORTS}[name].format(place=place, port=port, source=SOURCE)
    program = f"{TRY}\ndef f(x): return attempt(lambda: {act})"
    verdict = locked(program, f"assert f(0) == '{told}'")
    assert verdict.status == "correct", verdict


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused(locked: Judge | None, name: str) -> None:
    if locked is None:
        return
    assert platform.machine() == "x86_64", "give the numbers of this machine's calls in escapes.py"
    arguments = ", ".join(f"ctypes.c_long({a})" if isinstance(a, int) else a for a in CALLS[name])
    program = (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "room = (ctypes.c_ulong * 2)(64, 64)\n"
        f"def f(): return [library.syscall({arguments}), ctypes.get_errno()]"
    )
    verdict = locked(program, "assert f() == [-1, 1]")
    assert verdict.status == "correct", verdict


@pytest.mark.parametrize("mode", MODES)
def test_a_program_that_ends_leaves_nothing(judges: dict[str, Judge], mode: str) -> None:
    """Neither its folder nor, where it can start them, processes."""
    if mode not in judges:
        return
    program = """
import os, time
open("a", "w").write("x")
def start():
    try:
        child = os.fork()
    except OSError:
        return None
    if not child:
        time.sleep(600)
        os._exit(0)
    return child
"""
    steps = [("eval", "os.getcwd()"), ("eval", "os.listdir()"), ("eval", "start()")]
    outcome = run(program, steps, Allowance(5, 64, mode == "isolated"))
    folder, files, child = (decode(outcome.answers[n]["value"]) for n in range(3))
    assert files == ["a"]
    assert not Path(folder).exists()
    assert (child is None) == (mode == "isolated")
    if child is not None:
        until = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").exists():  # until whoever adopts it has looked
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "ZX":
                break
            assert time.monotonic() < until
            time.sleep(0.05)


def test_no_package_that_is_installed_can_be_read() -> None:
    if WHY_NOT:
        return  # nothing is given to be read
    readable = [Path(p).resolve() for p in locks()["readable"]]
    standard = Path(os.__file__).parent.resolve()
    places = [
        Path(prefix_rft.__file__).resolve(),
        standard / "site-packages",
        standard,
        Path.home(),
    ]
    places += [Path(p).resolve() for p in sys.path if p.endswith("-packages")]
    for place in places:
        assert not any(place.is_relative_to(p) for p in readable), place
    assert any((standard / "json").is_relative_to(p) for p in readable)


def test_what_a_program_may_do(locked: Judge | None) -> None:
    """Threads, files of its own, and the standard library, whatever it is made of."""
    if locked is None:
        return
    program = """
import bz2, collections, ctypes, dataclasses, decimal, hashlib, json, lzma, os, random, re, sqlite3
import string, struct, sys, tempfile, threading, typing, unittest, zlib
@dataclasses.dataclass
class Point:
    x: int
def f():
    found = []
    thread = threading.Thread(target=lambda: found.append(Point(3).x))
    thread.start()
    thread.join()
    with open("a", "w") as file, tempfile.TemporaryFile() as other:
        file.write("7")
        other.write(b"8")
    os.rename("a", "b")
    with open("b") as file, open(os.devnull, "w") as nothing:
        found.append(int(file.read()))
        print(5, file=nothing)
    os.unlink("b")
    assert len(hashlib.sha256(os.urandom(3)).digest()) == 32 and sqlite3.connect(":memory:")
    return found + os.listdir(".")
"""
    verdict = locked(program, "assert f() == [3, 7]")
    assert verdict.status == "correct", verdict


# ---- machines that cannot ----------------------------------------------------------------------

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
PRETEND, REFUSE, ABSENT = 0x50000, 0x50001, 0x50026
ON_SUCH_A_MACHINE = """
import ctypes, struct, sys
from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.sandbox import child
from prefix_rft.support.errors import UserError
steps = struct.pack(*eval(sys.argv[1]))
library = ctypes.CDLL(None, use_errno=True)
library.prctl(child.NO_NEW_PRIVILEGES, 1, 0, 0, 0)
child.restrict_calls(library, steps)
try:
    load_rewards({"name": "code", "workers": 1})
except UserError as error:
    print(error)
(reward,), _ = load_rewards({"name": "code", "unsandboxed": True, "workers": 1})
tests = [["assert f(1) == 1"], ["assert f(1) == 2"]]
print(reward(completions=["def f(x): return x"] * 2, tests=tests))
"""


def refusing(number: int, answer: int, argument: int | None = None) -> tuple[str, int, ...]:
    """A filter under which a call is answered so, where its first argument is this."""
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]
    if argument is not None:
        steps[1:2] = [(EQUAL, 0, 3, number), (LOAD, 0, 0, 16), (EQUAL, 0, 1, argument)]
    steps.append((RETURN, 0, 0, 0x7FFF0000))
    return "<" + "HBBI" * len(steps), *(value for step in steps for value in step)


PRCTL = {"x86_64": 157, "aarch64": 167}.get(platform.machine(), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="made with a filter of Linux's")
@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (refusing(444, ABSENT), "the kernel refuses Landlock: Function not implemented"),
        (refusing(PRCTL, REFUSE, 22), "the kernel refuses a filter of system calls"),
        # Kernels that say yes and do nothing: what they say is not believed.
        (refusing(446, PRETEND), "a program can read the grader's files"),
        (refusing(PRCTL, PRETEND, 22), "a program can send signals"),
    ],
    ids=["no Landlock", "no seccomp", "Landlock in name", "seccomp in name"],
)
def test_a_machine_that_cannot_isolate_is_refused(steps: tuple[object], why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_SUCH_A_MACHINE, repr(steps)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    refused, rewards = done.stdout.splitlines()
    if not WHY_NOT:
        assert why in refused
    assert "programs cannot be isolated on this machine" in refused
    assert refused.endswith("seccomp, or say unsandboxed: true")
    assert rewards == "[1.0, 0.0]"
