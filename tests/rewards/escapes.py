"""Programs that do not solve their task: they cheat, break things, or try to get out."""

import hashlib

SECRET = 7_391_845
"""What the tests expect; no program below may come to know it."""
DIGEST = hashlib.sha256(str(SECRET).encode()).hexdigest()

SEEK = f"""
import gc, hashlib, os, re, sys
def known(text):
    for digits in re.findall(r"\\d+", text):
        if hashlib.sha256(digits.encode()).hexdigest() == "{DIGEST}":
            return int(digits)
"""
FORGED = """
import json, os
def forge(*lines):
    for fd in range(1, 64):
        for line in lines or (dict(at=0, value=True), dict(at=0, value=["int", "1"])):
            try:
                line = line if isinstance(line, bytes) else json.dumps(line).encode()
                os.write(fd, line + b"\\n")
            except OSError:
                pass
"""

# Each must be wrong on ``assert f(2) == SECRET``, isolated or not.
FORGERIES = {
    "leaves": "import os; os._exit(0)",
    "exits": "raise SystemExit(0)",
    "exits in the call": "import sys\ndef f(x): sys.exit(0)",
    "leaves in the call": "import os\ndef f(x): os._exit(0)",
    "equals everything": """
class Anything:
    __eq__ = lambda self, other: True
    __hash__ = lambda self: 0
def f(x): return Anything()""",
    "a number that equals everything": """
class Anything(int):
    __eq__ = __ge__ = __le__ = lambda self, other: True
    __hash__ = int.__hash__
    __format__ = __repr__ = __str__ = lambda self, *spec: "true"
def f(x): return Anything(1)""",
    "a list that equals everything": """
class Anything(list):
    __eq__ = lambda self, other: True
    def __iter__(self): return iter("value")
def f(x): return Anything()""",
    "writes answers": FORGED + "forge()\ndef f(x): return 1",
    "writes answers and leaves": FORGED + "forge()\nos._exit(0)",
    "writes answers at its end": FORGED + "import atexit; atexit.register(forge)",
    "writes that it is refused": FORGED + "forge(dict(refused='no'))\nos._exit(0)",
    "writes an answer to no step": FORGED + "forge(dict(at=[], value=True))",
    "writes of an error of no kind": FORGED + "forge(dict(raised=[]))\ndef f(x): return 1",
    "writes what is no message": FORGED + "forge([])\ndef f(x): return 1",
    "writes what is no value": FORGED + "forge(dict(at=0, value=[[], {}]))",
    "writes many lines": FORGED + "forge(b'{}\\n' * 10**5)",
    "writes a deep answer": FORGED + "forge(b'[' * 10**5 + b'\\n')",
    "writes a deep value": FORGED
    + "forge(b'{\"at\":0,\"value\":' + b'[\"list\",' * 900 + b'1' + b']' * 900 + b'}\\n')",
    "writes a set that takes long": FORGED
    + """
slow = ["set", *(["int", format(n * (2**61 - 1), "x")] for n in range(20000))]
forge(json.dumps(dict(at=0, value=slow)).encode())""",
    "a value that takes long": """
class Slow(int):
    def __index__(self):
        while True: pass
    __int__ = __index__
def f(x): return Slow(3)""",
    "closes all": "import os\nos.closerange(0, 64)\ndef f(x): return 1",
    "replaces what it is called by": """
import builtins, json, sys
main = sys.modules["__main__"]
for name in dir(main):
    if callable(getattr(main, name)) and not name.startswith("__"):
        setattr(main, name, lambda *a, **k: True)
json.dumps = lambda *a, **k: '{"at": 0, "value": true}'
builtins.eval = builtins.compile = builtins.isinstance = lambda *a, **k: True
def f(x): return True""",
    "replaces the streams": "import io, sys\nsys.stdout = sys.stderr = io.StringIO()\nf = print",
    "changes the frames that called it": """
import sys
def f(x):
    frame = sys._getframe()
    while frame := frame.f_back:
        frame.f_globals["encode"] = lambda value: True
    return 1""",
    "looks through its memory": SEEK
    + """
def f(x):
    frame, seen = sys._getframe(), []
    while frame := frame.f_back:
        seen += [repr(frame.f_locals), repr(frame.f_globals)]
    return known(" ".join(seen + [repr(o) for o in gc.get_objects() if isinstance(o, dict)]))""",
    "looks at what it was given": SEEK
    + """
def f(x):
    seen = [repr(sys.argv), repr(os.environ), repr(sys.orig_argv)]
    for fd in range(64):
        try:
            os.set_blocking(fd, False)
            seen.append(str(os.read(fd, 1 << 20)))
        except OSError:
            pass
    return known(" ".join(seen))""",
    "answers every size": "def f(x): return [True] * 10**6",
    "another number each time": "n = 0\ndef f(x):\n    global n; n += 1; return n",
    "no program": "It adds the numbers up.",
    "a program that ends in the middle": "def f(x): return (",
}

# Each must be wrong, soon, isolated or not; with a word of why.
EXCESSES = {
    "runs for ever": ("while True: pass", "out of time"),
    "runs for ever when called": ("def f(x):\n    while True: pass", "out of time"),
    "sleeps": ("import time; time.sleep(3600)", "out of time"),
    "waits for input": ("import os\nos.read(os.pipe()[0], 1)", "out of time"),
    "cannot be interrupted": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\nwhile True:\n    try:\n        while True: pass\n"
        "    except BaseException: pass",
        "out of time",
    ),
    "stops itself": (
        "import signal\ntry: signal.raise_signal(signal.SIGSTOP)\nexcept OSError: pass\nwhile 1: 0",
        "out of time",
    ),
    "prints for ever": ("while True: print('x' * 4096)", "OSError"),
    "takes all memory": ("x = 'x'\nwhile True: x += x", "MemoryError"),
    "takes all memory at once": ("x = bytearray(1 << 34)", "MemoryError"),
    "calls itself": ("def f(x): return f(x)", "RecursionError"),
    "breaks the stack": (
        "import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, n):\n"
        "        return getattr(self, n)\nA().x",
        "",
    ),
    "breaks the process": ("import ctypes; ctypes.string_at(0)", "signal SIGSEGV"),
    "a large file": ("file = open('a', 'wb')\nwhile True: file.write(bytes(1 << 20))", "OSError"),
    "many files": (
        "for n in range(10**6):\n    with open(str(n), 'wb') as file: file.write(bytes(1 << 20))",
        "more than 256 files or 64 MB",
    ),
    "files without end": ("x = [open('/dev/null') for _ in range(10**6)]", "OSError"),
    "threads without end": (
        "import threading, time\nthreading.stack_size(1 << 16)\nfor _ in range(500):\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\ntime.sleep(9)",
        "more than 64 threads",
    ),
    "a huge value": ("def f(x): return 'x' * (5 << 20)", "values of more than 1 MB"),
    "a deep value": ("def f(x):\n    v = []\n    for _ in range(10**5): v = [v]\n    return v", ""),
    "values without end": (
        "def f(x):\n    while True: yield 1",
        "",
    ),
}

TRY = """
import os
def attempt(act):
    try:
        return act() or "done"
    except OSError as error:
        return type(error).__name__
    except ImportError as error:
        return "ImportError"
"""

# What each must be told: the kernel's refusal. ``{place}`` is a folder of the user's with a file
# ``own``, ``{port}`` a port that is listened on, ``{source}`` where the library stands.
ESCAPES = {
    "forks": "os.fork()",
    "forks many": "[os.fork() for _ in range(6)] and None",
    "starts a program": "__import__('subprocess').run(['/bin/true']).returncode",
    "becomes a program": "os.execv('/bin/true', ['true'])",
    "starts a shell": "__import__('subprocess').Popen('true', shell=True)",
    "spawns": "os.posix_spawn('/bin/true', ['true'], {{}})",
    "leaves a daemon behind": "os.setsid()",
    "kills the grader": "os.kill(os.getppid(), 9)",
    "kills itself for the grader": "os.kill(os.getpid(), 9)",
    "kills its group": "os.killpg(0, 9)",
    "kills everyone": "os.kill(-1, 0)",
    "reads a file": "open('{place}/own').read()",
    "reads a file by a long way": "open('../../../..{place}/own').read()",
    "lists a folder": "os.listdir('{place}')",
    "reads keys": "open('{place}/.ssh/id_ed25519').read()",
    "reads passwords": "open('/etc/passwd').read()",
    "writes a file": "open('{place}/own', 'w')",
    "adds to a file": "open('{place}/own', 'a')",
    "makes a file": "open('{place}/new', 'x')",
    "empties a file": "os.open('{place}/own', os.O_RDONLY | os.O_TRUNC)",
    "empties a library": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "empties a library in another way": "os.open(os.__file__, 3 | os.O_TRUNC)",
    "empties a file by its name": "os.truncate('{place}/own', 0)",
    "writes beside its folder": "open('../new', 'w')",
    "removes a file": "os.unlink('{place}/own')",
    "moves a file in": "os.rename('{place}/own', 'own')",
    "moves a file out": "open('a', 'w').close() or os.rename('a', '{place}/new')",
    "a link to a file": "os.symlink('{place}/own', 'own') or open('own').read()",
    "a hard link to a file": "os.link('{place}/own', 'own')",
    "makes a folder": "os.mkdir('new')",
    "makes a pipe with a name": "os.mkfifo('new')",
    "changes a mode": "os.chmod('{place}/own', 0o777)",
    "changes an owner": "os.chown('{place}/own', 1, 1)",
    "changes a time": "os.utime('{place}/own', (0, 0))",
    "becomes someone else": "os.setuid(65534)",
    "another root": "os.chroot('.')",
    "reads the grader's memory": "open('/proc/%d/mem' % os.getppid(), 'rb')",
    "reads the grader's environment": "open('/proc/%d/environ' % os.getppid(), 'rb').read()",
    "reads the grader's arguments": "open('/proc/%d/cmdline' % os.getppid(), 'rb').read()",
    "reads what it is": "open('/proc/self/maps').read()",
    "reads the grader's source": "open(__import__('sys').modules['__main__'].__file__).read()",
    "reaches the network": "__import__('socket').create_connection(('127.0.0.1', {port}))",
    "listens": "__import__('socket').socket().bind(('', 0))",
    "sends a datagram": ("__import__('socket').socket(type=2).sendto(b'x', ('127.0.0.1', {port}))"),
    "reaches programs": "__import__('socket').socket(1).connect('/run/docker.sock')",
    "reaches programs in pairs": "__import__('socket').socketpair()",
    "chooses its processor": "os.sched_setaffinity(0, [0])",
    "takes priority": "os.nice(1)",
    "has a file signal the grader": ("__import__('fcntl').fcntl(os.pipe()[0], 8, os.getppid())"),
    "memory that no limit counts": "os.memfd_create('x')",
    "speaks to a terminal": "__import__('fcntl').ioctl(0, 0x5412, b'x')",
}

IMPORTS = {
    "imports the grader": "__import__('prefix_rft')",
    "imports the grader from its place": (
        "__import__('sys').path.insert(0, '{source}') or __import__('prefix_rft.rewards.code')"
    ),
    "imports a package": "__import__('torch')",
}
"""These end as Python has it where nothing can be read."""

# The same in calls that Python has no name for, by their numbers on x86_64: the kernel says EPERM.
CALLS = {
    "ptrace": (101, 16, "os.getppid()"),
    "process_vm_readv": (310, "os.getppid()", 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "setns": (308, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "prctl": (157, 1, 0),
    "prlimit64": (302, 0, 7, "ctypes.byref(room)", 0),
    "open_by_handle_at": (304, 0, 0, 0),
    "pidfd_open": (434, "os.getppid()", 0),
    "pidfd_send_signal": (424, 0, 9, 0, 0),
    "tgkill": (234, "os.getppid()", "os.getppid()", 9),
    "shmget": (29, 0, 4096, 0o1600),
    "personality": (135, 0x0040000),
    "setitimer": (38, 0, 0, 0),
    "keyctl": (250, 0, 0, 0),
    "userfaultfd": (323, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "openat2": (437, 0, 0, 0, 0),
    "clone": (56, 17, 0, 0, 0, 0),
    "x32 write": (0x40000001, 1, 0, 0),
}
