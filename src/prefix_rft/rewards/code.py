"""Programs as completions, tests as their reward: the program runs apart, the word on it is here.

What a test expects never reaches the program's process. A script's output is compared here; of
assertions, the program's process gives values, and what remains is judged here or, where it is more
than a comparison with a literal, in another process that never sees the program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefix_rft.rewards.code_tests import Check, Pair, Statements, read_tests
from prefix_rft.rewards.marked import behind_thinking, opens_thinking
from prefix_rft.rewards.sandbox import Allowance, Outcome, refuse_where_impossible, run
from prefix_rft.rewards.sandbox.child import decode
from prefix_rft.rewards.verdict import (
    CORRECT,
    GOLD_UNPARSEABLE,
    NO_ANSWER,
    WRONG,
    Verdict,
    completion_text,
    grader,
)

FENCE = "```"
LANGUAGES = ("python", "python3", "py", "")
SMALL = 1 << 16
"""Characters of values that are compared here: what takes long is judged where time is limited."""
NO_VALUE = ["raised"]
"""In the place of a value that there is not: :func:`decode` raises at it."""


def prepare(options: Mapping[str, Any]) -> None:
    """Refuse a machine that cannot isolate programs, before anything is graded.

    Raises:
        UserError: it cannot, and ``unsandboxed`` does not say that this is known.
    """
    refuse_where_impossible(not options.get("unsandboxed", False))


@grader(tests_gold=True, own_limits=True, prepare=prepare)
def code(
    completions: Sequence[Any],
    tests: Sequence[Any],
    *,
    prompts: Sequence[Any] | None = None,
    extract: str | None = None,
    partial_credit: bool = False,
    unsandboxed: bool = False,
    timeout: float = 5.0,
    memory: int | None = 2048,
    **kwargs: Any,
) -> list[Verdict]:
    """Whether the program in each completion passes its row's tests, in TRL's reward signature.

    The program is the last block that is fenced as Python or as nothing, else the whole text; what
    stands before the last ``</think>`` does not count, and a block that is not closed is no answer.

    Args:
        completions: texts or conversations.
        tests: see :func:`prefix_rft.rewards.code_tests.read_tests`; a script is run once for each
            input, a module of functions once.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking.
        extract: regular expression whose last match is the program (its first group where it has
            one), in place of the rule above.
        partial_credit: reward a program that fails with the share of the tests that it passes.
        unsandboxed: run programs without isolation.
        timeout: seconds in which the program of one completion may run or sleep, over all tests.
        memory: megabytes that it may take beyond those of Python itself; None: any.
        **kwargs: other columns; not used.

    Raises:
        UserError: this machine cannot isolate programs, and ``unsandboxed`` is false.
    """
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    verdicts = []
    for completion, told, inside in zip(completions, tests, opened, strict=True):
        try:
            read = read_tests(told)
        except ValueError as error:
            verdicts.append(Verdict(GOLD_UNPARSEABLE, detail=str(error)))
            continue
        program = program_of(completion_text(completion), inside, extract)
        if not program.strip():
            verdicts.append(Verdict(NO_ANSWER))
            continue
        allowance = Allowance(timeout, memory, not unsandboxed)
        if isinstance(read, Statements):
            passed, why = judge_statements(program, read, allowance)
        else:
            passed, why = judge_script(program, read, allowance, to_the_end=partial_credit)
        share = sum(passed) / len(passed)
        if share == 1.0:
            verdicts.append(Verdict(CORRECT))
        else:
            verdicts.append(Verdict(WRONG, share if partial_credit else 0.0, why))
    return verdicts


def program_of(text: str, inside: bool = False, extract: str | None = None) -> str:
    """The program in a completion; empty where there is none.

    Args:
        text: the completion.
        inside: its prompt has opened the thinking already.
        extract: a regular expression for it.
    """
    rest = behind_thinking(text, inside)
    if rest is None:
        return ""
    if extract is not None:
        matches = list(_compiled(extract).finditer(rest))
        return (matches[-1].group(1 if matches[-1].re.groups else 0) or "") if matches else ""
    block: list[str] | None = None  # of the fence that is open
    language, found = "", None
    for line in rest.split("\n"):
        mark = line.strip()
        if block is None and mark.startswith(FENCE):
            block, language = [], mark.removeprefix(FENCE).strip().lower()
            found = "" if language in LANGUAGES else found
        elif block is not None and mark == FENCE:
            found = "\n".join(block) if language in LANGUAGES else found
            block = None
        elif block is not None:
            block.append(line)
    return rest if found is None else found


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def judge_script(
    program: str, pairs: Sequence[Pair], allowance: Allowance, to_the_end: bool = True
) -> tuple[list[bool], str]:
    """Which pairs a script passes, and why not the first that it does not.

    Args:
        program: the script.
        pairs: its tests.
        allowance: what it may use.
        to_the_end: run it on all of them, not to the first that it does not pass.
    """
    passed, why = [], ""
    for number, pair in enumerate(pairs, 1):
        outcome = run(
            program, (), allowance, pair.given.encode("utf-8", "surrogatepass"), "__main__"
        )
        printed = outcome.output.decode("utf-8", "replace")
        right = not outcome.fault and _lines(printed) == _lines(pair.expected)
        if not right:
            why = (
                why or f"test {number} of {len(pairs)}: {outcome.fault or f'printed {printed:.60}'}"
            )
        passed.append(right)
        if allowance.seconds <= 0 or not (right or to_the_end):
            break
    return passed + [False] * (len(pairs) - len(passed)), why


def _lines(text: str) -> list[str]:
    """The lines of a text; blanks at their ends and empty lines at its end do not count."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def judge_statements(
    program: str, tests: Statements, allowance: Allowance
) -> tuple[list[bool], str]:
    """Which assertions hold with the program's values, and why not the first that does not."""
    outcome = run(program, tests.steps, allowance)
    checks = tests.checks
    failed = outcome.fault or _failed_statement(tests, outcome)
    if failed:
        return [False] * len(checks), failed
    told = [outcome.answers.get(n, {}).get("value", NO_VALUE) for n in range(len(tests.steps))]
    small = sum(len(repr(value)) for value in told) < SMALL
    if small and all(check.expected for check in checks):
        passed = [_equal(told[c.values[0]], c.expected[0]) for c in checks]
    else:
        passed = _judge(tests, told, allowance)
    first = next((n for n, right in enumerate(passed) if not right), None)
    if first is None:
        return passed, ""
    said = [outcome.answers.get(n, {}) for n in checks[first].values]
    raised = next((f"raised {s['raised']}" for s in said if "raised" in s), "another value")
    return passed, f"test {first + 1} of {len(checks)}: {raised}"


def _failed_statement(tests: Statements, outcome: Outcome) -> str:
    """What came of the first statement beside the assertions that was not run to its end."""
    for number, (kind, source) in enumerate(tests.steps):
        answer = outcome.answers.get(number, {})
        if kind == "exec" and "value" not in answer:
            return f"'{source:.60}' raised {answer.get('raised', 'nothing and did not end')}"
    return ""


def _equal(told: Any, expected: Any) -> bool:
    """Whether a value, as the program's process says it, is the expected one."""
    try:
        return bool(decode(told) == expected)
    except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
        return False  # the program's process has said something else


def _judge(tests: Statements, told: Sequence[Any], allowance: Allowance) -> list[bool]:
    """The truth of each check, from a process that has the values and no program."""
    steps = [
        ("eval", f"bool({one.condition})") if isinstance(one, Check) else ("exec", one)
        for one in tests.judged
    ]
    answers = run("", steps, allowance, values=told).answers
    places = [n for n, one in enumerate(tests.judged) if isinstance(one, Check)]
    return [answers.get(n, {}).get("value") is True for n in places]
