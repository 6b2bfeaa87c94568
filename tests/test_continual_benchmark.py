"""benchmarks/continual: its tables follow from the records, by another computation too."""

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from test_benchmarks import ROOT, load

HERE = ROOT / "benchmarks/continual"
TASKS = ("sums", "products", "quotients")
STAGES = ("base", *(f"arms/{{}}/{i}-{name}" for i, name in enumerate(TASKS, 1)))


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield load(HERE / "tables.py")


@pytest.fixture(scope="module")
def texts(tables: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The rows are written anew: records of other rows would be refused."""
    return tables.made(*tables.board_in(tmp_path_factory.mktemp("rows")))


def test_tables_follow_from_the_records(tables: ModuleType, texts: tuple[str, str]) -> None:
    for path, text in zip(tables.PAGES, texts, strict=True):
        page = path.read_text(encoding="utf-8")
        assert tables.with_tables(page, text) == page, f"{path}: tables.py --write"


def mean(arm: str, seed: int, stage: int, name: str) -> float:
    """The share of right samples in a record."""
    folder = HERE / "results" / STAGES[stage].format(arm)
    path = folder / "done.json" if stage == 0 else folder / f"seed-{seed}/done.json"
    table = json.loads(path.read_text())["sets"][name]["1"]
    return float(np.mean(table["correct"])) / table["graded"]


def arms() -> dict[str, list[int]]:
    """The seeds of each arm that are through all tasks."""
    found: dict[str, list[int]] = {}
    for path in sorted(HERE.glob(f"results/arms/*/3-{TASKS[2]}/seed-*/done.json")):
        found.setdefault(path.parts[-4], []).append(int(path.parts[-2].removeprefix("seed-")))
    return found


def cells(text: str, title: str) -> dict[str, str]:
    """The second column of a table, by its first."""
    block = text[text.index(f"{title}") :].split("\n\n")[1]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines()[2:]]
    return {re.sub(r" \(\d of 3 seeds\)", "", row[0]): row[1] for row in rows}


def test_numbers_by_another_computation(texts: tuple[str, str]) -> None:
    assert {"sft", "grpo"} <= arms().keys()
    measures: dict[str, Any] = {
        "AvgAcc after": lambda P: np.mean(P[3]),
        "FM (max over stages 1..T)": lambda P: np.mean(P[3] - P[1:].max(0)),
        "FM (CGL": lambda P: np.mean([P[3, k] - P[k + 1, k] for k in (0, 1)]),
        "learnt in its own stage": lambda P: np.mean([P[k + 1, k] - P[k, k] for k in range(3)]),
    }
    for arm, seeds in arms().items():
        own = [np.array([[mean(arm, s, t, n) for n in TASKS] for t in range(4)]) for s in seeds]
        for title, measure in measures.items():
            told = float(cells(texts[0], title)[arm].split(" [")[0])
            assert told == pytest.approx(100 * np.mean([measure(P) for P in own]), abs=0.051), arm
