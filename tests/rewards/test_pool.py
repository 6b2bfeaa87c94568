"""A grader may do anything: every item gets a verdict, and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from faults import SLEEP
from prefix_rft.rewards import Graded, GraderPool, Limits, Verdict, checked, parse_rewards, process
from prefix_rft.rewards.worker import grade
from prefix_rft.support.errors import UserError
from tables import rest_slow

ITEMS = ["good", "bad", "good", "good", "bad", "good", "good"]
RIGHT = Verdict("correct", 1.0)
GONE_SECONDS = 5
"""A process that is killed is there until the kernel has come round to it."""

# What the verdict on a bad item must be: status, and words of its detail.
FAULTS = {
    "sleeps": ("timeout", "more than 0.5 s and slept"),
    "spins": ("timeout", "more than 0.5 s of processor time"),
    "backtracks": ("timeout", "more than 0.5 s of processor time"),
    "fails": ("error", "raised KeyError: 'no such thing'"),
    "leaves": ("error", "raised SystemExit: 0"),
    "exits": ("error", "the grader's process ended (exit code 3)"),
    "crashes": ("error", "the grader's process ended (signal SIGSEGV)"),
    "allocates": ("error", "ran out of memory (100 MB)"),
    "scribbles": ("error", "the grader disturbed its process"),
    "forges": ("error", "the grader disturbed its process"),
    "pretends": ("error", "the grader disturbed its process"),
    "forks": ("correct", ""),
    "fork_exits": ("correct", ""),
    "fork_holds": ("error", "the grader's process ended (exit code 3)"),
    "daemons": ("correct", ""),
    "threads": ("correct", ""),
    "closes": ("error", "the grader's process ended (exit code 5)"),
    "interrupts": ("error", "raised KeyboardInterrupt"),
    "speechless": ("error", "raised SpeechlessError: (no message)"),
    "surrogates": ("error", "raised OSError: caf\\udce9xxx"),
    "signals": ("error", "the grader's process ended (signal 35)"),
    "ignores": ("timeout", "more than 0.5 s"),
    "infinite": ("error", "the reward is 1e+39"),
    "children": ("timeout", "and slept"),
    "text": ("error", "'yes' is not a number"),
    "nan": ("error", "the reward is nan"),
    "number": ("error", "returned a float; it must return a list"),
    "several": ("error", "returned 2 rewards for 1 completion"),
    "nothing": ("skipped", ""),
    "verdicts": ("no answer", "said nothing"),
    "prints": ("correct", ""),
    "waits": ("wrong", ""),
}


def processes_of(parent: int) -> set[int]:
    """Children of a process, and programs in their sessions."""
    found = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,sid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in found.stdout.splitlines()]
    own = {int(pid) for pid, ppid, _, args in rows if int(ppid) == parent and "ps" not in args[:3]}
    return own | {int(pid) for pid, _, sid, _ in rows if int(sid) in own}


def sleepers() -> set[bytes]:
    """Programs that faulty graders start."""
    found = subprocess.run(["pgrep", "-f", f"^sleep {SLEEP}$"], capture_output=True, check=False)
    return set(found.stdout.split())


@pytest.fixture
def no_process_left() -> Iterator[None]:
    before, asleep = processes_of(os.getpid()), sleepers()
    yield
    until = time.monotonic() + GONE_SECONDS
    while not (processes_of(os.getpid()) <= before and sleepers() <= asleep):
        assert time.monotonic() < until
        time.sleep(0.05)


LIKE_ANOTHER = (
    *("sleeps", "backtracks", "ignores", "children", "closes", "signals", "crashes"),
    *("fork_holds", "scribbles", "forges", "speechless", "several", "infinite"),
)
"""Faults for whose kind another one stands in the default suite: a time, a process, a value."""


@pytest.mark.parametrize("fault", rest_slow(FAULTS, lambda fault: fault not in LIKE_ANOTHER))
def test_every_item_gets_its_verdict(
    fault: str, no_process_left: None, capfd: pytest.CaptureFixture[str]
) -> None:
    status, words = FAULTS[fault]
    pool = GraderPool(f"faults:{fault}", workers=2, limits=Limits(seconds=0.5, memory=100))
    verdicts = pool.grade([{"completions": c} for c in ITEMS])
    again = pool.grade([{"completions": "good"}])
    pool.close()
    assert [v.status for v in verdicts] == [status if c == "bad" else "correct" for c in ITEMS]
    assert all(words in v.detail for v, c in zip(verdicts, ITEMS, strict=True) if c == "bad")
    assert again == [RIGHT]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_thread_left_behind_is_not_charged_to_later_items() -> None:
    pool = GraderPool("faults:lingers", workers=1, limits=Limits(seconds=0.5))
    verdicts = pool.grade([{"completions": c} for c in ("bad", "good", "good")])
    pool.close()
    assert verdicts == [RIGHT] * 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", rest_slow((1, 2, 5), lambda workers: workers == 2))
def test_verdicts_do_not_depend_on_the_size_of_the_pool(workers: int) -> None:
    items = [
        {"completions": c, "answer": gold}
        for c, gold in [
            ("\\boxed{2}", "2"),
            ("the answer is 3", "2"),
            ("2", "2"),
            ("\\boxed{2}", "12:00"),
            ("\\boxed{x+x}", "2x"),
            ("\\boxed{\\{2,1\\}}", "\\{1,2\\}"),
        ]
    ] * 9
    pool = GraderPool("prefix_rft.rewards.math:math", workers=workers)
    found = [v.status for v in pool.grade(items)]
    pool.close()
    expected = ["correct", "wrong", "no answer", "gold unparseable", "correct", "correct"]
    assert found == expected * 9


@pytest.mark.parametrize(
    ("fault", "workers"),
    rest_slow(
        product(("dies", "leaks"), (1, 2)),
        lambda fault, workers: (fault, workers) == ("dies", 2),
    ),
)
def test_an_innocent_item_is_not_blamed(fault: str, workers: int) -> None:
    """A process that dies at every third call, or loses memory at each: not the items' doing."""
    limits = Limits(memory=100)
    pool = GraderPool(f"own_faults:{fault}", Path(__file__).parent, workers=workers, limits=limits)
    verdicts = pool.grade([{"completions": str(i)} for i in range(20)])
    pool.close()
    assert [v.status for v in verdicts] == ["correct"] * 20


@pytest.mark.slow
def test_waiting_for_a_processor_is_no_sleep() -> None:
    """Four times as many busy workers as cores: each item takes its own time, and no other."""
    workers = 4 * (os.cpu_count() or 1)
    pool = GraderPool("faults:works", workers=workers, limits=Limits(seconds=0.7))
    verdicts = pool.grade([{"completions": str(i)} for i in range(workers)])
    pool.close()
    assert [v.status for v in verdicts] == ["correct"] * workers


def test_a_pool_in_two_threads() -> None:
    pool = GraderPool("prefix_rft.rewards.text:exact", workers=2)

    def grade(gold: str) -> list[str]:
        items = [{"completions": str(i % 3), "answer": gold} for i in range(200)]
        return [v.status for v in pool.grade(items)]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(grade, ["0", "1"]))
    pool.close()
    for gold, statuses in enumerate(found):
        assert statuses == ["correct" if i % 3 == gold else "wrong" for i in range(200)]


def test_workers_that_died_between_calls_are_no_ones_fault() -> None:
    pool = GraderPool("faults:text", workers=2)
    assert pool.grade([{"completions": "good"}] * 20) == [RIGHT] * 20
    for worker in pool.workers:
        worker.process.kill()
        worker.process.wait()
    assert pool.grade([{"completions": "good"}] * 20) == [RIGHT] * 20
    pool.close()


@pytest.mark.slow
def test_no_file_is_left_open() -> None:
    pool = GraderPool("faults:exits", workers=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        pool.grade([{"completions": c} for c in ITEMS])
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="no process can be started for a reward"):
        GraderPool("faults:text", workers=1).start()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the pool's own selector


@pytest.mark.parametrize(
    "limits", [{"seconds": 0}, {"seconds": 1e9}, {"memory": 0}, {"memory": 2**40}]
)
def test_limits_out_of_range(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"a reward's (timeout|memory) must be"):
        Limits(**limits)


def test_many_large_items_do_not_block() -> None:
    pool = GraderPool("prefix_rft.rewards.text:exact", workers=2)
    text = "x" * 300_000
    items = [{"completions": text + str(i), "answer": text + str(i % 2)} for i in range(40)]
    found = [v.status for v in pool.grade(items)]
    pool.close()
    assert found == ["correct", "correct"] + ["wrong"] * 38


def test_no_item_is_no_work() -> None:
    pool = GraderPool("faults:exits", workers=2)
    assert pool.grade([]) == []
    assert pool.workers == []


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("faults:nobody", "has no attribute 'nobody'"),
        ("nowhere:grade", "No module named 'nowhere'"),
        ("bad_module:grade", "SyntaxError"),
        ("leaving_module:grade", "SystemExit"),
        ("dying_module:grade", "ended while importing it (exit code 7)"),
        ("faults", "must be of the form package.module:function"),
    ],
)
def test_a_grader_that_cannot_be_imported(
    function: str, sentence: str, tmp_path: Path, no_process_left: None
) -> None:
    (tmp_path / "bad_module.py").write_text("def grade(:\n")
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(1)\n")
    (tmp_path / "dying_module.py").write_text("import os\nos._exit(7)\n")
    pool = GraderPool(function, tmp_path, workers=1)
    with pytest.raises(UserError, match="reward") as caught:
        pool.grade([{"completions": "good"}])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


PARENT = """
import signal
from prefix_rft.rewards import GraderPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
pool = GraderPool("faults:sleeps", workers=2)
pool.grade([{"completions": "good"}] * 40)
print(*[w.process.pid for w in pool.workers], flush=True)
pool.grade([{"completions": "bad"}] * 2)
"""


@pytest.mark.parametrize(
    "number",
    rest_slow(
        (signal.SIGKILL, signal.SIGINT, signal.SIGTERM), lambda number: number == signal.SIGKILL
    ),
)
def test_workers_end_with_their_parent(number: int) -> None:
    """Also when they are stuck in a grader and the parent has no time to say goodbye."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.3)
    parent.send_signal(number)
    parent.wait(10)
    parent.stdout.close()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "a worker is left behind"
        time.sleep(0.05)


def test_an_interrupted_call_leaves_nothing_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = GraderPool("faults:text", workers=1)
    calls = []

    def interrupted(job: object) -> None:
        calls.append(job)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_stop_late", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.grade([{"completions": "bad"}] * 3)
    assert pool.workers == []
    assert pool.grade([{"completions": "good"}]) == [RIGHT]
    pool.close()


def test_graded_speaks_trl() -> None:
    reward = Graded("faults:shaped", options={"bonus": 0.25}, workers=1)
    values = reward(
        prompts=["p"] * 2, completions=["a", "b"], answer=["a", "a"], trainer_state=None
    )
    assert values == [1.25, 0.25]
    assert [v.status for v in reward.verdicts] == ["correct", "wrong"]
    assert reward.__name__ == "shaped"
    reward.close()


@pytest.mark.parametrize(
    ("option", "second"),
    rest_slow(
        [(None, 0.0), ("wrong", 0.0), ("exclude", None)], lambda option, second: option is None
    ),
)
def test_graded_without_an_answer(option: str | None, second: float | None) -> None:
    columns = {"answer": ["1", "1", "12:00"]}
    completions = ["\\boxed{1}", "1", "\\boxed{1}"]
    chosen = {} if option is None else {"no_answer": option}
    reward = Graded("prefix_rft.rewards.math:math", workers=1, **chosen)  # type: ignore[arg-type]
    assert reward(completions=completions, **columns) == [1.0, second, None]
    assert reward.verdicts[1].status == "no answer"
    reward.close()


@pytest.mark.parametrize(
    ("option", "expected"), [("wrong", [0.0, -0.5]), ("exclude", [None, None])]
)
def test_a_reward_that_the_grader_names_for_no_answer(
    option: str, expected: list[float | None]
) -> None:
    def said(completions: list[str]) -> list[Verdict]:
        return [Verdict("no answer"), Verdict("no answer", -0.5)]

    assert checked(said, option)(completions=["", ""]) == expected


def test_no_answer_is_one_of_two() -> None:
    with pytest.raises(UserError, match="unknown value of no_answer 'ignore'"):
        checked(len, "ignore")
    with pytest.raises(UserError, match="unknown value of no_answer 'ignore'"):
        parse_rewards({"name": "math", "no_answer": "ignore"})


class Table:
    """What iterates as a data frame does: over the names of its columns."""

    ndim = 2

    def __iter__(self) -> Iterator[str]:
        return iter(["0", "1"])


class Keyed:
    """A mapping that has not said so."""

    def keys(self) -> list[int]:
        return [0, 1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys())

    def __getitem__(self, key: int) -> float:
        return 0.5


NO_LISTS = {
    "dict": {0: 1.0, 1: 0.0},
    "OrderedDict": OrderedDict({0: 1.0, 1: 0.0}),
    "Counter": Counter([0, 1]),
    "mappingproxy": MappingProxyType({0: 1.0, 1: 0.0}),
    "dict_keys": {0: 1.0, 1: 0.0}.keys(),
    "dict_items": {0: 1.0, 1: 0.0}.items(),
    "set": {1.0, 0.0},
    "frozenset": frozenset({1.0, 0.0}),
    "str": "10",
    "bytes": b"10",
    "bytearray": bytearray(b"10"),
    "memoryview": memoryview(b"10"),
    "ndarray": np.ones((2, 1)),
    "Tensor": torch.ones(2, 2),
    "DataFrame": pd.DataFrame({0: [1.0], 1: [0.0]}),
    "Table": Table(),
    "Keyed": Keyed(),
    "float": 1.0,
    "NoneType": None,
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_what_is_no_list_of_rewards_is_refused(kind: str) -> None:
    """In the trainer's process, and for one completion in a grader's."""
    sentence = f"returned a {kind}; it must return a list with one number (or None) per completion"
    with pytest.raises(UserError) as caught:
        checked(lambda completions: NO_LISTS[kind])(completions=["a", "b"])
    assert str(caught.value) == f"reward function '<lambda>' {sentence}"
    one = {"dict": {0: 1.0}, "set": {1.0}, "str": "1"}.get(kind, NO_LISTS[kind])
    verdict = grade(lambda completions: one, {"completions": "a"}, {})
    assert verdict == Verdict("error", detail=sentence)


@pytest.mark.parametrize(
    "returned",
    [
        [1.0, 0.0],
        (1, 0),
        np.array([1.0, 0.0]),
        torch.tensor([1.0, 0.0]),
        pd.Series([1.0, 0.0], index=[5, 7]),
        deque([True, False]),
        {"a": 1.0, "b": 0.0}.values(),
        (float(c == "a") for c in "ab"),
        range(1, -1, -1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_holds_rewards_in_order_is_read(returned: Any) -> None:
    assert checked(lambda completions: returned)(completions=["a", "b"]) == [1.0, 0.0]


@pytest.mark.parametrize("value", [{"reward": 1.0}, "1", b"1", [1.0], {1.0}, (1.0, 2.0)])
def test_an_element_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"completion 1: .+ is not a number"):
        checked(lambda completions: [0.0, value])(completions=["a", "b"])
    verdict = grade(lambda completions: [value], {"completions": "a"}, {})
    assert verdict is not None
    assert (verdict.status, "is not a number" in verdict.detail) == ("error", True)


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        ("faults:shaped", {"bonnus": 1}, "did you mean 'bonus'"),
        ("faults:logs", {}, "takes 'log_metric', which cannot reach the process"),
    ],
)
def test_graded_refuses_what_would_be_ignored(
    function: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match="reward") as caught:
        Graded(function, options=options, workers=1)
    assert sentence in str(caught.value)


def test_an_option_that_is_also_a_column() -> None:
    reward = Graded("faults:shaped", options={"bonus": 1.0}, workers=1)
    with pytest.raises(UserError, match="both an option and a column"):
        reward(completions=["a"], answer=["a"], bonus=[3])
    reward.close()


def test_a_program_that_is_just_being_started_is_killed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its start and its environment it carries no token: it was left behind, once."""
    program = subprocess.Popen(["sleep", "60"], env={process.TOKEN: "here"})
    read, empty = Path.read_bytes, [f"/proc/{program.pid}/environ"]

    def read_bytes(path: Path) -> bytes:
        if str(path) in empty:
            empty.remove(str(path))
            return b""
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    process._kill_marked("here")
    monkeypatch.undo()
    assert empty == []
    assert program.wait(5) == -signal.SIGKILL
