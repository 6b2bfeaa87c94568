"""Rows of several tasks, each graded by its own task's reward."""

from pathlib import Path

import pytest

from prefix_rft.rewards import close_all, load_rewards
from prefix_rft.rewards.by_task import by_task, united
from prefix_rft.rewards.verdict import CORRECT, ERROR, WRONG
from prefix_rft.support.errors import UserError

COUNTDOWN = "prefix_rft.tasks.countdown:reward"
SPECS = {"text": {"name": "exact", "ignore_case": True}, "puzzle": COUNTDOWN}
ROWS = {
    "task": ["puzzle", "text", "puzzle", "text"],
    "answer": [None, "Yes", None, "no"],
    "numbers": [[3, 4], None, [3, 4], None],
    "target": [12, None, 7, None],
}
COMPLETIONS = ["3 * 4 = 12", "yes", "3 * 4 = 12", "3 * 4 = 12"]


def test_each_row_by_its_own_task() -> None:
    found = by_task(COMPLETIONS, **ROWS, rewards=SPECS)  # pyright: ignore[reportArgumentType]
    assert [v.status for v in found] == [CORRECT, CORRECT, WRONG, WRONG]


def test_in_processes_as_a_recipe_names_it() -> None:
    rewards, weights = load_rewards(united(SPECS))
    try:
        assert rewards[0](completions=COMPLETIONS, **ROWS) == [1.0, 1.0, 0.0, 0.0]
        # A task that nobody grades is the grader's failure, not the model's.
        assert rewards[0](completions=["yes"], task=["other"], answer=["yes"]) == [None]
        assert rewards[0].verdicts[0].status == ERROR
    finally:
        close_all(rewards)
    assert weights == [1.0]


def strict(completions: list[str], numbers: list[list[int]]) -> list[float]:
    return [float(len(n)) for n in numbers]


def optional(completions: list[str], answer: list[str] | None = None) -> list[float]:
    return [float(answer is None)] * len(completions)


def test_columns_of_other_tasks_do_not_reach_it() -> None:
    specs = {"text": "test_by_task:optional", "puzzle": "test_by_task:strict"}
    rows = {**ROWS, "task": ["puzzle", "text", "puzzle", "text"], "answer": [None] * 4}
    found = by_task(COMPLETIONS, **rows, rewards=specs)  # pyright: ignore[reportArgumentType]
    assert [v.reward for v in found] == [2.0, 1.0, 2.0, 1.0]


LISTS = [{"name": "exact"}, "format"]
REFUSED = {
    "several": ({"a": LISTS, "b": "exact"}, "task 'a' has 2 rewards"),
    "none": ({"a": None, "b": "exact"}, "task 'a' has 0 rewards"),
    "limits": (
        {"a": "exact", "b": {"name": "exact", "timeout": 1.0}},
        r"'a' and 'b' differ in 'timeout' \(5.0, 1.0\)",
    ),
    "whole batch": ({"a": {"name": "exact", "whole_batch": True}, "b": "exact"}, "whole_batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_one(name: str) -> None:
    specs, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        united(specs)


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ({"a": {"name": "exact", "ignore": 1}}, "unknown option of reward 'exact' 'ignore'"),
        ({"a": "code"}, "starts processes of its own"),
        ({"a": {"name": "exact", "timeout": 1.0}}, "'timeout' has no effect under 'by_task'"),
        ({}, "needs 'rewards'"),
        ({"a": "no_such:thing"}, "cannot be imported"),
    ],
)
def test_what_cannot_be_used(rewards: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_rewards({"name": "by_task", "rewards": rewards})


def test_options_that_differ_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def longer(completions, than=1, **kwargs):\n"
        "    return [float(len(c) > than) for c in completions]\n"
    )
    specs = {"a": {"name": "own:longer", "than": 3}, "b": {"name": "own:longer", "than": 5}}
    rewards, _ = load_rewards(united(specs), tmp_path)
    try:
        assert rewards[0](completions=["four", "four"], task=["a", "b"]) == [1.0, 0.0]
    finally:
        close_all(rewards)


def test_another_source_of_a_tasks_reward_is_known(tmp_path: Path) -> None:
    specs = {"a": "mine:always", "b": "exact"}

    def decided_by(number: str) -> object:
        (tmp_path / "mine.py").write_text(
            f"def always(completions, **kwargs):\n    return [{number}] * len(completions)\n"
        )
        rewards, _ = load_rewards(united(specs), tmp_path)
        close_all(rewards)
        return rewards[0].decided_by  # pyright: ignore[reportFunctionMemberAccess]

    first = decided_by("0.0")
    assert decided_by("0.0") == first
    assert decided_by("0.25") != first
