"""When prefixes win: its tables and the score that ``advise`` quotes, from the records alone."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prefix_rft.evaluation.estimates import Estimate

ROOT = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"regimes_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what a file takes from another one beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load(ROOT / "benchmarks/regimes/tables.py")


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load(ROOT / "benchmarks/simulation.py")


def made_up(tables: ModuleType, seed: int, solved: float, **correct: list[int]) -> Any:
    """A run of two problems with four samples each."""
    cell = {"graded": 4, "truncated": 0.0, "no_answer": 0.0, "tokens": 1.0}
    records = {
        arm.replace("_and_", "+"): {
            "sets": {
                name: {"1": {**cell, "correct": c}}
                for name in ("held-out", "validation", "old-rule")
            },
            "costs": {"flops": 1e9},
        }
        for arm, c in correct.items()
    }
    return tables.Run(seed, Estimate(solved, 0.0, 9.0, 2), records)


SEEDS = ((1, 0.2, [0, 0]), (2, 5.0, [4, 2]), (3, 1.5, [4, 4]), (4, 3.0, [1, 0]))
"""Number, lambda, and what RL solves of two problems."""


@pytest.fixture
def runs(tables: ModuleType) -> list[Any]:
    return [
        made_up(
            tables,
            seed,
            solved,
            sft=[0, 0],
            sft_and_dr_grpo=rl,
            sft_and_grpo=[1, 0],
            sft_and_adaback=[4, 4],
        )
        for seed, solved, rl in (
            (1, 0.2, [0, 0]),
            (2, 5.0, [4, 2]),
            (3, 1.5, [4, 4]),
            (4, 3.0, [1, 0]),
        )
    ]


def test_the_score_by_hand(tables: ModuleType, runs: list[Any]) -> None:
    rule = tables.score({"chain-N5-L24": runs[:2], "countdown-N5-L4": runs[2:]})
    words = "runs on chains of 24 hidden steps, Countdown with 4 numbers"
    assert rule.where == f"{words} (models of 0.1 to 0.3 million parameters)"
    # .2 did not lift off and 5 did (75 %): right. 1.5 is not scored. 3 did not lift off: wrong.
    # RL is what its best arm makes of it: GRPO, where it has solved one of eight and Dr. GRPO none.
    assert (rule.right, rule.scored, rule.unscored) == (2, 3, 1)
    assert (rule.low, rule.high) == (0.2, 5.0)
    assert rule.below == (0.125, 1.0)
    assert rule.above == ((0.75 + 0.125) / 2, 1.0)
    assert rule.score == "2 of 3 runs"


def test_a_table_by_hand(tables: ModuleType, runs: list[Any]) -> None:
    rows = {row[0]: row for row in tables.table(runs)}
    assert list(rows) == [
        "SFT",
        "SFT, then RL at 3e-4",
        "SFT, then GRPO at 3e-4",
        "SFT, then AdaBack",
    ]
    # Dr. GRPO (47 %) is the better one on validation rows, so all are less it.
    assert rows["SFT, then RL at 3e-4"][2] == ""
    assert rows["SFT, then RL at 3e-4"][1].startswith("46.9%")
    assert rows["SFT, then GRPO at 3e-4"][2].startswith("-34.4")
    assert rows["SFT, then AdaBack"][2].startswith("+53.1")
    assert [rows[x][3] for x in rows] == ["0 of 4", "2 of 4", "0 of 4", "4 of 4"]
    assert rows["SFT, then RL at 3e-4"][4] == "62.5"  # solved at all: 0, 2, 2 and 1 of 2
    assert tables.by_seed(runs)[1][:2] == ["2", "5 [0, 9]"]
    assert tables.by_seed(runs)[1][2:] == ["0.0", "75.0", "12.5", "100.0"]


def test_half_of_the_way_by_hand(tables: ModuleType) -> None:
    run = made_up(tables, 1, 0.2, sft=[0, 0], sft_and_adaback=[4, 4], sft_and_control=[2, 2])
    tokens = {"sampled": 100.0, "prefilled": 0.0, "forward": 0.0, "trained": 50.0}
    for arm in ("sft+adaback", "sft+control"):
        run.records[arm]["costs"] = {**tokens, "flops": 5000.0}  # ten weights: 2 x 100 + 6 x 50
    # Eight rows a step at the prompt, of which from step 31 on six are solved.
    step = [8, 0, 10, 0, 0, 1]
    rising = [*[step] * 30, *[[8, 6, 10, 0, 0, 1]] * 30]
    curves = {"sft+adaback": rising, "sft+control": [[0, 0, 10, 0, 0, 1]] * 60}
    run = tables.Run(1, run.solved, run.records, curves)
    # A half of 100 %: n solved steps of 20 with n 6/8 / 20 >= 1/2, so 14 of them, at step 44.
    assert run.half("sft+adaback") == (44, pytest.approx(44 * 10 * (2 * 10 + 6)))
    assert run.half("sft+control") is None  # no row started at the prompt
    assert tables.halves({"a": [run]}) == [["a", "1", "44 (1.1e+04)", "never", ""]]


def test_a_curve_by_hand(tmp_path: Path) -> None:
    curves = load(ROOT / "benchmarks/regimes/curves.py")
    metrics = {"reward": 0.5, "prefix/row_share": 0.875, "policy/reward": 0.25}
    metrics |= {f"tokens/{name}": i for i, name in enumerate(curves.TOKENS)}
    others = {"reward": 0.5, **{f"tokens/{name}": 1 for name in curves.TOKENS}}
    path = tmp_path / "metrics.jsonl"
    lines = [metrics, {"step": 1, "train_loss": 0.1}, {**others, "policy/reward": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curves.curve(path) == [[8, 2, 0, 1, 2, 3], [64, 32, 1, 1, 1, 1]]


def test_the_packaged_score_is_that_of_the_records(tables: ModuleType) -> None:
    text = tables.packaged(tables.score(tables.cells()))
    assert tables.PACKAGED.read_text(encoding="utf-8") == text


def test_the_pages_have_the_tables_of_the_records(tables: ModuleType) -> None:
    found = tables.cells()
    for path, text in zip(
        tables.PAGES, (tables.of_page(found), tables.of_guide(found)), strict=True
    ):
        page = path.read_text(encoding="utf-8")
        assert page.count(tables.BEGIN) == page.count(tables.END) == 1
        assert tables.with_tables(page, text) == page


def test_the_picture_is_of_the_records(tables: ModuleType) -> None:
    picture = load(ROOT / "benchmarks/regimes/picture.py")
    found = tables.cells()
    assert picture.FILE.read_text(encoding="utf-8") == picture.draw(found)
    assert picture.MAP.read_text(encoding="utf-8") == picture.draw_map(tables.ends(found))


def test_places_in_the_picture_by_hand() -> None:
    picture = load(ROOT / "benchmarks/regimes/picture.py")
    left, right = picture.across(0.01), picture.across(100.0)
    assert picture.across(1.0) == pytest.approx((left + right) / 2)  # two decades on either side
    assert picture.across(0.0) == left
    assert picture.up(50) == pytest.approx((picture.up(0) + picture.up(100)) / 2)
    assert picture.up(0) > picture.up(100)


def test_laws_on_simulated_students(simulation: ModuleType) -> None:
    """Of some students, each law as in the file's first lines; and what the index says of all."""
    found = json.loads((ROOT / "benchmarks/simulation.json").read_text())["laws"]
    assert list(found) == list(simulation.LAWS)
    name = "integral, gain .2"
    runs = [
        simulation.visits(simulation.LAWS[name], student, i, 0.0)
        for i, student in enumerate(simulation.students())
    ]
    assert {k: found[name][k] for k in ("flat", "signal", "off")} == simulation.measures(runs)
    index = (ROOT / "benchmarks/README.md").read_text()
    bisection = next(v for k, v in found.items() if k.startswith("bisection"))
    of = [found[name], bisection, found["plain"]]
    flat, signal = ([round(100 * x[key]) for x in of] for key in ("flat", "signal"))
    assert f"{flat[0]} % are flat, of bisection {flat[1]} %, without a prefix {flat[2]} %" in index
    assert f"{signal[0]}, {signal[1]} and {signal[2]} % of the most" in index


def test_rounds_by_hand(simulation: ModuleType) -> None:
    # Eight rows of one start at a half teach the most; four pairs four sevenths of it less.
    assert simulation.signal_of_rounds([0.5] * 4, 2) == round(4 / 7, 3)
    assert simulation.signal_of_rounds([0.5, 0.5, 1.0, 0.0], 2) == round(2 / 7, 3)
    assert simulation.signal_of_rounds([0.5] * 4, 8) == round(4 * 7 / 31, 3)
    # A student that always fails is helped more from round to round, until all is shown.
    assert simulation.rounds(simulation.Student(50.0, 9.0, 0.0), 0, 2, 0.0)[-1] < 1e-9
    found = json.loads((ROOT / "benchmarks/simulation.json").read_text())["rounds"]
    few, many = (found[f"SEELE, 4 rounds of {rows} rows"]["signal"] for rows in (2, 8))
    page = (ROOT / "docs/methods/control.md").read_text()
    words = f"{few:.2f} of the most that eight rows can teach, with 32 rows {many:.2f}"
    assert words in " ".join(page.split())


def test_a_student_by_hand(simulation: ModuleType) -> None:
    student = simulation.Student(k=10.0, m=0.5, b=0.2)
    assert student.success(0.5, 0, 0.0) == pytest.approx(0.6)
    # Ten visits of 0.02 have moved the middle by 0.2.
    assert student.success(0.3, 10, 0.02) == pytest.approx(0.6)
    alike = [[(0.5, 4)] * 20, [(1.0, 8)] * 20]
    assert simulation.measures(alike) == {"flat": 0.5, "signal": 0.5, "off": 0.25}
    assert np.isclose(simulation.measures([[(0.0, 0)] * 20])["flat"], 1.0)
