"""What the tests of commands share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefix_rft.rewards import registry


@pytest.fixture(scope="session")
def math_grader() -> Iterator[Any]:
    """The reward 'math', whose process serves all tests: its start takes longer than most runs."""
    reward: Any = registry.load_reward(registry.Entry("math", workers=1), Path(), "math")
    close, reward.close = reward.close, lambda: None
    yield reward
    close()


@pytest.fixture
def shared_math(math_grader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes whose reward is 'math', without options, get that one."""
    load = registry.load_reward

    def load_reward(entry: registry.Entry, *where: Any) -> Any:
        return math_grader if entry == registry.Entry("math") else load(entry, *where)

    monkeypatch.setattr(registry, "load_reward", load_reward)
