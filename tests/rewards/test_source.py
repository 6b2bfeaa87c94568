"""The hash of a reward's source changes with what decides its verdicts, and with nothing else."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.checked import checked
from prefix_rft.rewards.source import hash_of_source

FILES = {
    "graders/__init__.py": "",
    "graders/reward.py": (
        "from .parts import share\nimport graders.table\nimport json\n"
        "def right(completions, answer, **kwargs):\n    return [share(c) for c in completions]\n"
    ),
    "graders/parts.py": "from beside import FACTOR\ndef share(text):\n    return FACTOR\n",
    "graders/table.py": "TABLE = {1: 2}\n",
    "graders/other.py": "UNUSED = 1\n",
    "beside.py": "FACTOR = 1.0\n",
    "alone.py": "UNUSED = 1\n",
}


def write(folder: Path, changed: str | None = None) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + ("\nMORE = 1\n" if name == changed else ""))


def in_worker(folder: Path, spec: Any) -> Any:
    rewards, _ = load_rewards(spec, folder)
    rewards[0].close()
    return rewards[0].decided_by


SPEC: dict[str, Any] = {"name": "graders.reward:right", "workers": 1}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        (None, False),
        ("graders/reward.py", True),
        ("graders/parts.py", True),
        ("graders/table.py", True),
        ("beside.py", True),
        ("graders/other.py", False),
        ("alone.py", False),
    ],
)
def test_modules_that_a_reward_imports_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str | None, counts: bool
) -> None:
    found = []
    for name, what in (("before", None), ("after", changed)):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, what)
        monkeypatch.syspath_prepend(str(folder))
        for module in [m for m in sys.modules if m.partition(".")[0] in ("graders", "beside")]:
            del sys.modules[module]
        found.append(hash_of_source(importlib.import_module("graders.reward").right))
    assert (found[0] != found[1]) == counts


def test_a_reward_in_a_worker_says_what_decides_it(tmp_path: Path) -> None:
    write(tmp_path)
    before = in_worker(tmp_path, SPEC)
    assert in_worker(tmp_path, {**SPEC, "workers": 2}) == before
    for change in ({"timeout": 4.0}, {"memory": 1000}):
        assert in_worker(tmp_path, {**SPEC, **change}) != before
    write(tmp_path, "graders/parts.py")
    assert in_worker(tmp_path, SPEC) != before


def scripted(text: str, name: str = "reward") -> Any:
    """A function of the script itself, as a notebook has it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text, space)  # noqa: S102
    return space[name]


SCRIPT = """K = 1
def helper(x):
    return x + K
def reward(completions, **kwargs):
    return [helper(1) for c in completions]
"""


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        (SCRIPT, False),
        (SCRIPT + "LEARNING_RATE = 1\n", False),
        (SCRIPT.replace("helper(1)", "helper(2)"), True),
        (SCRIPT.replace("x + K", "x - K"), True),
        (SCRIPT.replace("K = 1", "K = 2"), True),
    ],
)
def test_of_a_script_the_function_and_what_it_calls_count(changed: str, counts: bool) -> None:
    """But not the script as a whole, in which the learning rate stands."""
    assert (hash_of_source(scripted(SCRIPT)) != hash_of_source(scripted(changed))) == counts


class Scorer:
    """A reward that is an object."""

    def __init__(self, scale: float) -> None:
        self.scale, self.marks = scale, {"b", "a"}

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        return [self.scale] * len(completions)


def bound(scale: float) -> Any:
    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [scale] * len(completions)

    return reward


@pytest.mark.parametrize(
    "make", [Scorer, bound, lambda x: partial(Scorer(1.0), scale=x), lambda x: Scorer(x).__call__]
)
def test_what_a_reward_holds_counts(make: Any) -> None:
    same, other = hash_of_source(make(1.0)), hash_of_source(make(2.0))
    assert hash_of_source(make(1.0)) == same != other
    assert hash_of_source(checked(make(1.0))) == same
