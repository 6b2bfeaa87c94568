"""Graders with faults of their own, which no item is to blame for."""

import os
import sys
from typing import Any

from prefix_rft.rewards.code import code

calls = 0
kept: list[bytearray] = []


def dies(completions: list[str], **kwargs: Any) -> list[float]:
    global calls
    calls += 1
    if calls == 3:
        os._exit(1)
    return [1.0]


def leaks(completions: list[str], **kwargs: Any) -> list[float]:
    kept.append(bytearray(30_000_000))
    return [1.0]


def no_interpreter(completions: list[str], tests: list[Any], **kwargs: Any) -> list[Any]:
    sys.executable = "/nowhere/python"
    return code(completions, tests)
