"""The reward ``code``: which text is the program, what tests mean, and what a verdict says."""

import errno
import json
import math
import struct
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.code import judge_statements, program_of
from prefix_rft.rewards.code_tests import Check, Pair, Statements, read_tests
from prefix_rft.rewards.completions import grade_texts
from prefix_rft.rewards.golds import unreadable_golds
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.registry import load_reward, parse_rewards
from prefix_rft.rewards.sandbox import Allowance, filter, refuse_where_impossible
from prefix_rft.rewards.sandbox.child import decode, encode
from prefix_rft.support.errors import UserError

PROGRAMS = {
    "a block": ("So:\n```python\nx = 1\n```\nDone.", "x = 1"),
    "the last block": ("```python\nx = 1\n```\n```py\nx = 2\n```", "x = 2"),
    "a block without a language": ("```\nx = 1\n```", "x = 1"),
    "another language": ("```python\nx = 1\n```\nprints\n```text\n1\n```", "x = 1"),
    "other languages alone": ("```text\n1\n```", "```text\n1\n```"),
    "several lines": ("```python\ndef f():\n    return 1\n```", "def f():\n    return 1"),
    "indented fences": ("1.\n   ```Python\nx = 1\n   ```", "x = 1"),
    "the whole text": ("x = 1\ny = 2", "x = 1\ny = 2"),
    "behind thinking": ("<think>```python\nx = 1\n```</think>x = 2", "x = 2"),
    "inside thinking": ("<think>```python\nx = 1\n```", ""),
    "cut off": ("```python\nx = 1\n```\nbetter:\n```python\nx = ", ""),
    "nothing": (" \n", " \n"),
}


@pytest.mark.parametrize(("text", "program"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_program_in_a_completion(text: str, program: str) -> None:
    assert program_of(text) == program


def test_a_program_by_a_regular_expression() -> None:
    assert program_of("<code>x = 1</code>", extract=r"(?s)<code>(.*?)</code>") == "x = 1"
    assert program_of("x = 1; x = 2", extract=r"x = \d") == "x = 2"
    assert program_of("none", extract=r"\d") == ""
    assert program_of("x = 1", inside=True) == ""


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1\n", "output": "2\n"}],
        {"inputs": ["1\n"], "outputs": ["2\n"]},
        {"input": "1\n", "output": "2\n"},
        '{"inputs": ["1\\n"], "outputs": ["2\\n"]}',
        '[{"input": "1\\n", "output": "2\\n"}]',
    ],
)
def test_pairs(tests: Any) -> None:
    assert read_tests(tests) == [Pair("1\n", "2\n")]


# What is evaluated where the program is, and what remains; worked out by hand.
TAKEN_APART = {
    "assert f(3) == 9": (["f(3)"], ["value_of(0) == 9"]),
    "assert 9 == f(3), 'no'": (["f(3)"], ["9 == value_of(0)"]),
    "assert f(g(2)) != h(1)": (["f(g(2))", "h(1)"], ["value_of(0) != value_of(1)"]),
    "assert f(2) is None and not g(1)": (
        ["f(2)", "g(1)"],
        ["value_of(0) is None and (not value_of(1))"],
    ),
    "assert set(f(1)) == set([1, 2])": (["set(f(1))"], ["value_of(0) == set([1, 2])"]),
    "assert len(f(1)) == 2": (["len(f(1))"], ["value_of(0) == 2"]),
    "assert round(f(1), 2) == 0.5": (["f(1)"], ["round(value_of(0), 2) == 0.5"]),
    "assert abs(f(1) - 3.14) < 1e-6": (["f(1)"], ["abs(value_of(0) - 3.14) < 1e-06"]),
    "assert f(1)[0] == 'a'": (["f(1)"], ["value_of(0)[0] == 'a'"]),
    "assert isinstance(f(1), int)": (["f(1)"], ["isinstance(value_of(0), int)"]),
    "assert ', '.join(f(1)) == 'a, b'": (["f(1)"], ["', '.join(value_of(0)) == 'a, b'"]),
    "assert [f(i) for i in range(2)] == [0, 1]": (
        ["[f(i) for i in range(2)]"],
        ["value_of(0) == [0, 1]"],
    ),
    "assert all(abs(a - b) < 1 for a, b in zip(f(2), [1, 2]))": (
        ["f(2)"],
        ["all((abs(a - b) < 1 for a, b in zip(value_of(0), [1, 2])))"],
    ),
    "assert f(lambda x: x > 2) == 3": (["f(lambda x: x > 2)"], ["value_of(0) == 3"]),
    # MBPP has tests of programs that are named like a built-in function.
    "assert sum(10, 15) == 6": (["sum(10, 15)"], ["value_of(0) == 6"]),
    "import math\nassert math.isclose(f(1), 2.0)": (
        ["import math", "f(1)"],
        ["import math", "math.isclose(value_of(1), 2.0)"],
    ),
    # What only assertions name is kept back, and what the program is given is not.
    "e = [2]\nassert f([1]) == e": (["f([1])"], ["e = [2]", "value_of(0) == e"]),
    "e = 2\nd = e\nassert f(d) == e": (
        ["e = 2", "d = e", "f(d)", "e"],
        ["value_of(2) == value_of(3)"],
    ),
    "a = [2, 1]\nf(a)\nassert a == [1, 2]": (
        ["a = [2, 1]", "f(a)", "a"],
        ["value_of(2) == [1, 2]"],
    ),
    "s = Stack()\ns.push(3)\nassert s.pop() == 3": (
        ["s = Stack()", "s.push(3)", "s.pop()"],
        ["value_of(2) == 3"],
    ),
}


@pytest.mark.parametrize("text", TAKEN_APART)
def test_assertions_are_taken_apart(text: str) -> None:
    read = read_tests(text)
    assert isinstance(read, Statements)
    judged = [one.condition if isinstance(one, Check) else one for one in read.judged]
    assert ([source for _, source in read.steps], judged) == TAKEN_APART[text]
    assert read_tests(text.split("\n")) == read


UNREADABLE = {
    "none": ([], "there are no tests"),
    "null": (None, "there are no tests"),
    "no Python": (["assert f("], "the tests are no Python: SyntaxError"),
    "no JSON": ("[1,", "look like JSON and are none"),
    "no assertion": (["f(1)"], "the tests assert nothing"),
    "nothing of the program": (["assert 1 == 1"], "'1 == 1' names nothing of the program"),
    "in a function": (
        ["def check(f):\n    assert f(1) == 2"],
        "line 1 of the tests asserts within another statement",
    ),
    "in a loop": (["for i in range(3): assert f(i) == i"], "asserts within another statement"),
    "compared inside": (
        ["assert all(f(i) == i for i in range(3))"],
        "compare its value as a whole",
    ),
    "a mixture": (["assert f(1)", {"input": "", "output": ""}], "neither a statement nor input"),
    "other keys": ([{"input": "", "output": "", "x": 1}], "neither a statement nor input"),
    "numbers": ([{"input": 1, "output": "2"}], "are texts"),
    "other columns": ({"inputs": [], "outputs": [], "fn_name": "f"}, "neither input and output"),
    "of two lengths": ({"inputs": ["1"], "outputs": []}, "as many inputs"),
    "too deep": (["assert f(" + "[" * 150 + "]" * 150 + ") == 1"], None),
    "much too deep": (["assert f(1) == " + "-" * 5000 + "1"], "nested too deeply"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_tests_that_cannot_be_read(name: str) -> None:
    tests, word = UNREADABLE[name]
    if word is None:
        assert read_tests(tests)
        return
    with pytest.raises(ValueError, match=word):
        read_tests(tests)


# ---- values ------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")
VALUES = [
    *(None, True, False, 0, -1, 10**5000, 0.1, -0.0, math.inf, 1 - 2j, "a\n\udcff", "", b"\x00"),
    *([], [1, [2]], (), (1,), set(), {1, "a"}, frozenset({(1, 2)}), {}, {1: [2], "a": {}}),
    range(1, 9, 2),
]


# A set's own text has another order in each process.
@pytest.mark.parametrize(
    "value", VALUES, ids=[f"{type(v).__name__}-{i}" for i, v in enumerate(VALUES)]
)
def test_a_value_comes_back(value: Any) -> None:
    told = decode(json.loads(json.dumps(encode(value))))
    assert told == value
    assert type(told) is type(value)


def test_values_of_other_classes() -> None:
    assert decode(encode(Counter("aab"))) == {"a": 2, "b": 1}
    assert decode(encode(OrderedDict(a=1))) == {"a": 1}
    assert decode(encode(Point(1, 2))) == (1, 2)
    assert math.isnan(decode(encode(math.nan)))
    assert list(decode(encode(x for x in (1, 2)))) == [1, 2]
    assert decode(encode(x for x in (1, 2))) != [1, 2]
    for value in (object(), print, [object()], type):
        with pytest.raises(TypeError, match="which is no plain value"):
            encode(value)
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(TypeError, match="more than 200 containers"):
        encode(deep)


# ---- verdicts ----------------------------------------------------------------------------------


def can_isolate() -> bool:
    try:
        refuse_where_impossible(isolate=True)
    except UserError:
        return False
    return True


SPEC = {"name": "code", "workers": 2, "timeout": 3, "unsandboxed": not can_isolate()}


@pytest.fixture(scope="module")
def reward() -> Iterator[Graded]:
    (one,), _ = load_rewards(SPEC)
    assert isinstance(one, Graded)
    yield one
    one.close()


# Programs and tests that Python itself is asked about, too: whether all assertions hold.
ASKED = {
    "right": ("def f(x): return x * x", ["assert f(3) == 9", "assert f(-2) == 4"]),
    "wrong": ("def f(x): return x * 3", ["assert f(3) == 9", "assert f(-2) == 4"]),
    "raises": ("def f(x): return 1 / x", ["assert f(1) == 1", "assert f(0) is None"]),
    "one of two": ("def f(x): return 1 / x", ["assert f(1) == 1 or f(0) == 2"]),
    "both": ("def f(x): return 1 / x", ["assert f(0) == 1 or f(1) == 1"]),
    "in a row": ("def f(x): return x", ["assert 0 < f(1) < 2", "assert f(1) in (1, 2)"]),
    "near": ("def f(x): return x / 3", ["assert abs(f(1) - 0.333) < 1e-3"]),
    "not near": ("def f(x): return x / 3", ["assert abs(f(1) - 0.34) < 1e-3"]),
    "a tuple for a list": ("def f(x): return (x,)", ["assert f(1) == [1]"]),
    "a counter": (
        "from collections import Counter\ndef f(x): return Counter(x)",
        ["assert f('aab') == {'a': 2, 'b': 1}"],
    ),
    "a generator": ("def f(x): yield from x", ["assert list(f('ab')) == ['a', 'b']"]),
    "a generator itself": ("def f(x): yield from x", ["assert f('ab') == ['a', 'b']"]),
    "in place": ("def f(x): x.sort()", ["a = [2, 1]\nf(a)", "assert a == [1, 2]"]),
    "a class": (
        "class Stack(list):\n    push = list.append",
        ["s = Stack()", "s.push(3)", "assert s.pop() == 3", "assert len(s) == 0"],
    ),
    "objects": (
        "class A:\n    def __init__(self, x): self.x = x\ndef f(x): return A(x)",
        ["assert f(3).x == 3", "assert isinstance(f(3), A)"],
    ),
    "a setup that raises": ("def f(x): return x", ["y = f.no", "assert f(1) == 1"]),
    "kept back": ("def f(x): return [x]", ["e = [1]", "assert f(1) == e", "assert f(2) == e + e"]),
    "a name of Python's": ("def sum(a, b): return a", ["assert sum(1, 2) == 1"]),
    "a helper": (
        "def f(x): return x",
        ["def near(a, b):\n    return a - b < 1", "assert near(f(2), 1.5)"],
    ),
    "recursion": ("def f(n): return n and n + f(n - 1)", ["assert f(50) == 1275"]),
    "a large number": ("def f(n): return 10 ** n", ["assert f(5000) == 10 ** 5000"]),
    "not a number": ("def f(): return float('nan')", ["assert f() == f()"]),
    "nothing defined": ("x = 1", ["assert f(1) == 1"]),
    "a script's main": (
        "def f(): return 1\nif __name__ == '__main__': raise ValueError",
        ["assert f() == 1"],
    ),
    "prints": ("print('x' * 10)\ndef f(): print(1); return 2", ["assert f() == 2"]),
}


def python_says(program: str, tests: list[str]) -> str:
    """What becomes of the program with its tests behind it in one process, as anyone runs it."""
    scope: dict[str, Any] = {"__name__": "program", "print": lambda *a: None}
    try:
        for text in (program, *tests):
            exec(text, scope)  # noqa: S102
    except Exception:  # noqa: BLE001
        return "wrong"
    return "correct"


def test_verdicts_are_those_of_python(reward: Graded) -> None:
    programs = [p for p, _ in ASKED.values()]
    reward(completions=programs, tests=[t for _, t in ASKED.values()])
    said = {name: v.status for name, v in zip(ASKED, reward.verdicts, strict=True)}
    assert said == {name: python_says(*case) for name, case in ASKED.items()}
    assert Counter(said.values()).keys() == {"correct", "wrong"}


def test_scripts(reward: Graded) -> None:
    double = "print(2 * int(input()))"
    asked = [
        (double, ["1\n", "2\n"], ["2\n", "4"], "correct", ""),
        (double, ["1\n", "2\n"], ["2\n", "5"], "wrong", "test 2 of 2: printed 4"),
        (double, ["x\n"], ["2"], "wrong", "test 1 of 1: raised ValueError: invalid literal"),
        ("print('a  \\nb\\n\\n')", [""], ["a\nb"], "correct", ""),
        ("print('a\\n b')", [""], ["a\nb"], "wrong", "printed a\n b"),
        (f"{double}\nraise SystemExit(0)", ["1"], ["2"], "correct", ""),
        (f"{double}\nraise SystemExit(3)", ["1"], ["2"], "wrong", "exit code 3"),
        (f"{double}\n1 / 0", ["1"], ["2"], "wrong", "raised ZeroDivisionError"),
        (f"if __name__ == '__main__': {double}", ["1"], ["2"], "correct", ""),
        ("import sys; print(len(sys.stdin.read()))", ["x" * 300_000], ["300000"], "correct", ""),
        ("import os; os.write(1, b'\\xff')", [""], ["\ufffd"], "correct", ""),
    ]
    columns = [{"inputs": inputs, "outputs": outputs} for _, inputs, outputs, *_ in asked]
    reward(completions=[a[0] for a in asked], tests=columns)
    for (*_, status, detail), verdict in zip(asked, reward.verdicts, strict=True):
        assert verdict.status == status, verdict
        assert detail in verdict.detail, verdict


def test_what_is_no_answer_and_what_is_no_test(reward: Graded) -> None:
    asked = ["assert f(1) == 1"]
    told = ["", "<think> f", "def f(x): return x", "```python\ndef f(x): return x\n```"]
    reward(completions=[*told, *told], tests=[asked] * 4 + [[]] * 4)
    statuses = [v.status for v in reward.verdicts]
    assert statuses[:4] == ["no answer", "no answer", "correct", "correct"]
    assert statuses[4:] == ["gold unparseable"] * 4
    assert [v.reward for v in reward.verdicts][:5] == [0.0, 0.0, 1.0, 1.0, None]


def test_rows_whose_tests_cannot_be_read_are_dropped(reward: Graded) -> None:
    class Rows(list[dict[str, Any]]):
        def select(self, places: range) -> list[dict[str, Any]]:
            return [self[n] for n in places]

    tests = [["assert f(1) == 1"], ["f(1)"], [{"input": "", "output": ""}], "assert f("]
    rows = Rows({"prompt": "p", "tests": t} for t in tests)
    assert unreadable_golds(reward, rows) == [1, 3]
    assert reward.required == ["tests"]
    (verdict,) = grade_texts(reward, rows[:1], ["def f(x): return x"])
    assert verdict.status == "correct"


def test_partial_credit() -> None:
    (reward,), _ = load_rewards({**SPEC, "partial_credit": True})
    asserted = ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 3", "assert f(0) is None"]
    pairs = {"inputs": ["1", "2", "3"], "outputs": ["1", "4", "3"]}
    script = "x = int(input())\nprint(x if x != 3 else 1 / 0)"
    rewards = reward(
        completions=["def f(x): return x or None", "x", script, "def f(x): return x ** 2 or None"],
        tests=[asserted, asserted, pairs, asserted[:2]],
    )
    assert rewards == [0.75, 0.0, pytest.approx(1 / 3), 1.0]
    assert [v.status for v in reward.verdicts] == ["wrong", "wrong", "wrong", "correct"]
    reward.close()


def test_one_limit_of_time_for_all_that_a_completion_does() -> None:
    """Three inputs of 0.4 s do not fit into 0.9 s, and two do."""
    spec = {**SPEC, "timeout": 0.9, "partial_credit": True}
    (reward,), _ = load_rewards(spec)
    script = "import time; time.sleep(0.4); print(1)"
    rewards = reward(completions=[script] * 2, tests=[[PAIR] * 3, [PAIR] * 2])
    assert rewards == [pytest.approx(2 / 3), 1.0]
    assert "test 3 of 3: out of time" in reward.verdicts[0].detail
    reward.close()


PAIR = {"input": "", "output": "1"}


def test_a_judge_that_takes_too_long_makes_the_program_wrong() -> None:
    tests = read_tests(["assert sum(range(f(1)), start=1) > 5"])
    allowance = Allowance(0.5, 64, can_isolate())
    assert isinstance(tests, Statements)
    passed, _ = judge_statements("def f(x): return 10 ** 12", tests, allowance)
    assert passed == [False]
    assert allowance.seconds == 0.0


def test_its_limits_are_those_of_every_reward() -> None:
    (entry,) = parse_rewards({**SPEC, "timeout": 2, "memory": 33})
    reward: Any = load_reward(entry, Path(), "code")
    assert (reward.pool.limits.seconds, reward.pool.limits.memory) == (2, 33)
    takes = "x = bytearray({} << 20)\ndef f(): return 1"
    completions = [takes.format(20), takes.format(40)]
    assert reward(completions=completions, tests=[["assert f() == 1"]] * 2) == [1.0, 0.0]
    assert "MemoryError" in reward.verdicts[1].detail
    reward.close()
    with pytest.raises(UserError, match="timeout are limits, no options: give Limits"):
        Graded("prefix_rft.rewards.code:code", options={"timeout": 3})
    with pytest.raises(UserError, match="unknown option of reward 'code' 'sandboxed'"):
        load_rewards({**SPEC, "sandboxed": True})


def test_a_harness_that_fails_is_no_reward() -> None:
    """A grader without an interpreter to start says nothing about the program."""
    spec = {"name": "own_faults:no_interpreter", "workers": 1}
    (reward,), _ = load_rewards(spec, Path(__file__).parent)
    assert reward(completions=["def f(): return 1"], tests=[["assert f() == 1"]]) == [None]
    assert reward.verdicts[0].status == "error"
    assert "no process can be started for a program" in reward.verdicts[0].detail
    reward.close()


# ---- the filter --------------------------------------------------------------------------------


def decided(steps: bytes, machine: int, number: int, *arguments: int) -> int:
    """What a filter says of a call: an interpreter of the few instructions that it has."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, machine, 0, *padded)
    program, at, held = list(struct.iter_unpack("<HBBI", steps)), 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            held &= operand
        elif code == 0x15:
            at += yes if held == operand else no
        else:
            assert code == 0x06
            return operand


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 + errno.EPERM, 0x50000 + errno.ENOSYS, 0x80000000
# From the kernel's unistd.h: read, write, exit_group; execve, kill, socket, ptrace, mount, chmod.
X86, ARM = 0xC000003E, 0xC00000B7
CALLS = {
    ("x86_64", X86): ((0, 1, 231), (59, 322, 57, 58, 62, 200, 41, 42, 101, 165, 90, 268, 157, 160)),
    ("aarch64", ARM): ((63, 64, 94), (221, 281, 129, 130, 198, 203, 117, 40, 52, 53, 167, 164)),
}
NUMBERS = {X86: (56, 435, 302, 16, 72, 257), ARM: (220, 435, 261, 29, 25, 56)}


@pytest.mark.parametrize(("kind", "machine"), CALLS)
def test_what_the_filter_says(kind: str, machine: int) -> None:
    steps = filter.program(kind)
    allowed, refused = CALLS[kind, machine]
    assert [decided(steps, machine, n) for n in allowed] == [ALLOW] * len(allowed)
    assert [decided(steps, machine, n) for n in refused] == [EPERM] * len(refused)
    assert decided(steps, machine ^ 1, 0) == KILL
    assert all(decided(steps, machine, n) == EPERM for n in range(442, 600))
    clone, clone3, prlimit, ioctl, fcntl, openat = NUMBERS[machine]
    cases = {
        (clone, 0x3D0F00): ALLOW,  # as the C library starts a thread
        (clone, 17): EPERM,
        (clone, 0x4100 | 17): EPERM,  # vfork
        (clone3, 0): ENOSYS,
        (prlimit, 0, 7, 0): ALLOW,
        (prlimit, 0, 7, 4096): EPERM,
        (prlimit, 0, 7, 1 << 32): EPERM,
        (ioctl, 0, 0x5401): ALLOW,
        (ioctl, 0, 0x5412): EPERM,
        (fcntl, 0, 1): ALLOW,
        (fcntl, 0, 8): EPERM,
        (fcntl, 0, 10): EPERM,
        (openat, 0, 0, 0): ALLOW,
        (openat, 0, 0, 0o1000): EPERM,
        (openat, 0, 0, 0o1003): EPERM,
        (openat, 0, 0, 0o1101): ALLOW,
        (openat, 0, 0, 0o1002): ALLOW,
    }
    assert {case: decided(steps, machine, *case) for case in cases} == cases


def test_a_processor_whose_calls_are_not_known() -> None:
    with pytest.raises(UserError, match="the calls of linux on riscv64 are not known here"):
        filter.program("riscv64")
