"""The process in which a stranger's program runs: run as a script, with the standard library alone.

It reads one request, gives up what the program must not have, says that it has, and only then runs
the program. What a test expects is never sent here: a program may read and change all that is in
its own process, so nothing in it is a secret, and nothing that it says is believed but as a value.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import sys
from _json import encode_basestring_ascii as quoted

# This is paid for every program: modules that Python has started with, and small ones, alone.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGKILL = 9
NO_NEW_PRIVILEGES, PARENT_DEATH, SECCOMP = 38, 1, 22
FILTER = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
DEEPEST = 200
"""Containers within one another in a value."""


def main(requests: int, answers: int) -> None:
    """Run one request, and answer with JSON lines."""

    def answer(**message: Any) -> None:
        line = memoryview(f"{as_json(message)}\n".encode())
        while line:
            line = line[os.write(answers, line) :]

    with os.fdopen(requests, "rb") as file:
        asked = marshal.loads(file.read())  # noqa: S302  (from our own parent)
    try:
        give_up(asked)
    except OSError as error:
        answer(refused=f"{error}")
        return
    answer(ready=True)
    module = type(sys)(asked["name"])
    if "values" in asked:
        module.__dict__["value_of"] = lambda place: decode(asked["values"][place])
    sys.modules[asked["name"]] = module
    sys.argv = [asked["name"]]
    try:
        exec(compile(asked["program"], "<program>", "exec"), module.__dict__)  # noqa: S102
    except SystemExit:
        raise  # its exit code is its own
    except BaseException as error:  # noqa: BLE001  (a stranger's program may raise anything)
        answer(raised=say(error))
        raise SystemExit(1) from None
    for number, (kind, source) in enumerate(asked["steps"]):
        try:
            code = compile(source, "<test>", kind)
            value = eval(code, module.__dict__)  # noqa: S307  (what this process is for)
            answer(at=number, value=encode(value) if kind == "eval" else None)
        except BaseException as error:  # noqa: BLE001  (as above)
            answer(at=number, raised=say(error))


def say(error: BaseException) -> str:
    """``ValueError: ...`` on one short line, also of an error that cannot say what it is."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  (its own __str__ fails)
        text = "(no message)"
    return " ".join(f"{type(error).__name__}: {text}"[:200].split())


# ---- limits ------------------------------------------------------------------------------------


def give_up(asked: dict[str, Any]) -> None:
    """Set the limits of a request and lock this process in.

    Raises:
        OSError: the kernel does not do so; says what.
    """
    os.chdir(asked["folder"])
    linux = sys.platform == "linux"
    library = ctypes.CDLL(None, use_errno=True)
    if linux:
        called(library.prctl(PARENT_DEATH, SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != asked["parent"]:
        raise OSError("the grader's process is gone")
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(asked["seconds"]) + 2,  # if nobody is there to stop it earlier
        "RLIMIT_FSIZE": asked["file_bytes"],
        "RLIMIT_NOFILE": asked["open_files"],
    }
    if linux and asked["memory"] is not None:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        limits["RLIMIT_AS"] = taken + asked["memory"] * 2**20
    for name, value in limits.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    if asked["isolate"]:
        called(library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
        restrict_files(library, asked["readable"], asked["listed"], asked["folder"])
        restrict_calls(library, asked["filter"])
        try_to_leave(library, asked["folder"])


def called(result: int, what: str) -> int:
    """What a function of the C library returned, or an error with its name."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel refuses {what}: {os.strerror(number)}")
    return result


def restrict_files(library: Any, readable: list[str], listed: str, folder: str) -> None:
    """Allow only reading below some paths, and plain files in ``folder`` (Landlock, Linux 5.13).

    Args:
        library: the C library.
        readable: files, and folders of which all can be read.
        listed: a folder in which names can be read.
        folder: the program's own.
    """
    version = called(library.syscall(CREATE_RULESET, None, 0, 1), "Landlock")
    handled = (1 << 13) - 1 | REFER * (version >= 2) | TRUNCATE * (version >= 3)
    handled |= IOCTL * (version >= 5)
    size = ctypes.c_size_t(8)
    rules = called(
        library.syscall(CREATE_RULESET, ctypes.byref(ctypes.c_uint64(handled)), size, 0),
        "Landlock",
    )
    write = WRITE_FILE | READ_FILE | TRUNCATE & handled
    rights = dict.fromkeys(readable, READ_FILE | READ_DIR)
    rights |= {os.devnull: write, folder: write | READ_DIR | REMOVE_FILE | MAKE_REG}
    rights[listed] = READ_DIR
    for path, right in rights.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            right &= WRITE_FILE | READ_FILE | TRUNCATE
        rule = ctypes.create_string_buffer(
            right.to_bytes(8, "little") + place.to_bytes(4, "little")
        )
        called(library.syscall(ADD_RULE, rules, 1, rule, 0), f"a rule for '{path}'")
        os.close(place)
    called(library.syscall(RESTRICT_SELF, rules, 0), "Landlock's rules")
    os.close(rules)


def restrict_calls(library: Any, program: bytes) -> None:
    """Allow only the system calls of a filter (seccomp)."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    steps = Program(len(program) // 8, program)
    called(library.prctl(SECCOMP, FILTER, ctypes.byref(steps), 0, 0), "a filter of system calls")


def try_to_leave(library: Any, folder: str) -> None:
    """Try what the program must not be able to do: locks are believed when they have been felt.

    Raises:
        OSError: one of these things can be done.
    """
    outside = os.path.join(os.path.dirname(folder), os.path.basename(folder) + "-outside")
    tries = {
        "read the grader's files": lambda: os.close(os.open(__file__, os.O_RDONLY)),
        "read other processes": lambda: os.listdir("/proc/self"),
        "write outside its folder": lambda: os.close(os.open(outside, os.O_CREAT | os.O_WRONLY)),
        "send signals": lambda: os.kill(os.getpid(), 0),
        "change limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        "reach the network": lambda: called(library.socket(2, 1, 0), "a socket"),
        "start processes": lambda: called(library.syscall(CLONE[os.uname().machine], NONE, 0), ""),
    }
    for what, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            continue
        except ValueError as error:  # how the module resource says it
            if "not allowed" in str(error):
                continue
        except OSError as error:
            raise OSError(error.errno, f"a program can {what} ({error})") from None
        raise OSError(errno.EPERM, f"a program can {what}")


CLONE = {"x86_64": 56, "aarch64": 220}
NONE = 0x800
"""Flags with which no kernel makes a process (CLONE_SIGHAND alone): it says so, or our filter."""


# ---- values ------------------------------------------------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """A plain value as what JSON can carry: a list of its kind and its parts.

    Objects of classes that come from a plain one are sent as that one, and an iterator with all
    that is left in it.

    Raises:
        TypeError: another kind of value.
    """
    if depth > DEEPEST:
        raise TypeError(f"it holds more than {DEEPEST} containers within one another")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return ["str", str.__str__(value)]
    if isinstance(value, int):
        return ["int", int.__format__(value, "x")]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", *([encode(k, depth + 1), encode(v, depth + 1)] for k, v in pairs)]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            items: Any = kind.__iter__(value)  # pyright: ignore[reportArgumentType]
            return [kind.__name__, *(encode(v, depth + 1) for v in items)]
    if isinstance(value, range):
        return ["range", *(int.__format__(i, "x") for i in (value.start, value.stop, value.step))]
    if hasattr(type(value), "__next__"):
        return ["iterator", *(encode(v, depth + 1) for v in value)]
    raise TypeError(f"it returned a {type(value).__name__}, which is no plain value")


def as_json(value: Any) -> str:
    """JSON of mappings, lists, texts, whole numbers, truth values and None."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quoted(k)}:{as_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def decode(told: Any) -> Any:
    """The value behind what :func:`encode` says.

    Raises:
        TypeError, ValueError, LookupError, OverflowError, RecursionError: it says nothing.
    """
    if told is None or isinstance(told, bool):
        return told
    kind, *parts = told
    if kind == "dict":
        return {decode(k): decode(v) for k, v in parts}
    if kind == "range":
        start, stop, step = parts
        return range(int(start, 16), int(stop, 16), int(step, 16))
    collection = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}.get(kind)
    if collection is not None:
        return collection(decode(part) for part in parts)
    if kind == "iterator":
        return iter([decode(part) for part in parts])
    if kind == "complex":
        real, imaginary = parts
        return complex(float.fromhex(real), float.fromhex(imaginary))
    (part,) = parts
    scalars = {"float": float.fromhex, "bytes": bytes.fromhex, "int": lambda text: int(text, 16)}
    return str.__str__(part) if kind == "str" else scalars[kind](part)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
