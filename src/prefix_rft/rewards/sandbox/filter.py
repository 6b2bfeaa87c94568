"""The system calls that a program may make, as a filter for the kernel (seccomp, Linux).

A list of what is allowed: whatever is not here is refused with EPERM, also what later kernels add.
No call starts a process or a program, opens a socket, sends a signal, changes a limit, an owner or
a mode, makes a folder, a link or a device, or looks into another process.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

from prefix_rft.support.errors import UserError

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Of a kind of processor: its column in ``ALLOWED``, and its number in the kernel's audit.h."""

# name:x86_64:aarch64, as in Linux's asm/unistd_64.h and asm-generic/unistd.h; - where there is none
ALLOWED = """
read:0:63 write:1:64 close:3:57 fstat:5:80 newfstatat:262:79 lseek:8:62 mmap:9:222
mprotect:10:226 munmap:11:215 mremap:25:216 brk:12:214 madvise:28:233 msync:26:227
stat:4:- lstat:6:- statx:332:291 access:21:- faccessat:269:48
faccessat2:439:439 readlink:89:- readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50
getdents:78:- getdents64:217:61 rename:82:- renameat:264:38 renameat2:316:276 unlink:87:-
unlinkat:263:35 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 flock:73:32
umask:95:166 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 sendfile:40:71
copy_file_range:326:285 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59
close_range:436:436 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 sigaltstack:131:132
restart_syscall:219:128 pause:34:- nanosleep:35:101 clock_nanosleep:230:115
clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153
getitimer:36:102 futex:202:98 set_robust_list:273:99 set_tid_address:218:96 rseq:334:293
membarrier:324:283 sched_yield:24:124 sched_getaffinity:204:123 getcpu:309:168 exit:60:93
exit_group:231:94 getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174
geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getrlimit:97:163
getrusage:98:165 sysinfo:99:179 uname:63:160 getrandom:318:278
"""
# Those of which only some uses are allowed, in the same form.
CLONE, CLONE3, PRLIMIT = "clone:56:220", "clone3:435:435", "prlimit64:302:261"
IOCTL, FCNTL, OPEN, OPENAT = "ioctl:16:29", "fcntl:72:25", "open:2:-", "openat:257:56"

CLONE_THREAD = 0x10000
O_TRUNC, ACCESS = 0o1000, 0o3
ASKED_OF_DEVICES = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
"""ioctl: whether it is a terminal, its size, bytes that can be read, close-on-exec off and on."""
ASKED_OF_FILES = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""fcntl: duplicates, flags and locks, and not who is sent which signal when a file is ready."""

KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000
LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
"""Where in the kernel's ``struct seccomp_data`` they stand, in bytes."""

Step = tuple[int, int, int, int]
"""An instruction: code, steps to skip if true, if false, and its operand."""


def program(machine: str = "") -> bytes:
    """The filter as the kernel reads it: 8 bytes an instruction.

    Args:
        machine: the kind of processor; by default that of this machine.

    Raises:
        UserError: another system than Linux, or a processor whose calls are not listed.
    """
    machine = machine or platform.machine()
    if sys.platform != "linux" or machine not in MACHINES or sys.byteorder != "little":
        raise UserError(f"the calls of {sys.platform} on {machine} are not known here")
    column, audit = MACHINES[machine]

    def number(entry: str) -> int | None:
        own = entry.split(":")[1 + column]
        return None if own == "-" else int(own)

    steps: list[Step] = [_load(MACHINE), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), _load(NUMBER)]
    for entry in ALLOWED.split():
        steps += _case(number(entry), [_allow()])
    # Not there, as far as a program can see: the C library then takes clone, which can be read.
    steps += _case(number(CLONE3), [_refuse(errno.ENOSYS)])
    threads = [_argument(0), (AND, 0, 0, CLONE_THREAD), (EQUAL, 0, 1, 0), _refuse(), _allow()]
    steps += _case(number(CLONE), threads)
    asks = [_argument(2), (EQUAL, 0, 3, 0), _argument(2, 4), (EQUAL, 0, 1, 0), _allow(), _refuse()]
    steps += _case(number(PRLIMIT), asks)
    for entry, known in ((IOCTL, ASKED_OF_DEVICES), (FCNTL, ASKED_OF_FILES)):
        one_of = [step for value in known for step in ((EQUAL, 0, 1, value), _allow())]
        steps += _case(number(entry), [_argument(1), *one_of, _refuse()])
    for entry, flags in ((OPEN, 1), (OPENAT, 2)):
        steps += _case(number(entry), _no_hidden_truncation(flags))
    steps.append(_refuse())
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _no_hidden_truncation(flags: int) -> list[Step]:
    """A file that is not opened for writing is not made empty: Landlock sees that from 6.2 on."""
    asked = [_argument(flags), (AND, 0, 0, O_TRUNC | ACCESS)]
    return [*asked, (EQUAL, 1, 0, O_TRUNC), (EQUAL, 0, 1, O_TRUNC | ACCESS), _refuse(), _allow()]


def _case(number: int | None, steps: list[Step]) -> list[Step]:
    """What is done for one call: steps that end with a decision."""
    return [] if number is None else [(EQUAL, 0, len(steps), number), *steps]


def _load(offset: int) -> Step:
    return LOAD, 0, 0, offset


def _argument(position: int, half: int = 0) -> Step:
    """The lower 32 bits of a call's argument, or the upper ones (``half`` 4)."""
    return _load(ARGUMENTS + 8 * position + half)


def _allow() -> Step:
    return RETURN, 0, 0, ALLOW


def _refuse(number: int = errno.EPERM) -> Step:
    return RETURN, 0, 0, REFUSE | number
