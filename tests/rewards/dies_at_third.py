"""A grader with a fault of its own, which no item is to blame for."""

import os
from typing import Any

calls = 0


def grade(completions: list[str], **kwargs: Any) -> list[float]:
    global calls
    calls += 1
    if calls == 3:
        os._exit(1)
    return [1.0]
