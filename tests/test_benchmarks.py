"""Benchmarks and examples can be imported, and what is committed follows from the records."""

import csv
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from prefix_rft.compare.command import run_compare
from prefix_rft.compare.inputs import same_inputs
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.view import as_csv, as_markdown
from prefix_rft.recipe.recipe import Recipe
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.arithmetic import write as write_arithmetic
from prefix_rft.tasks.countdown import write

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("benchmarks", "examples") for p in (ROOT / folder).rglob("*.py"))


def load(path: Path) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"of_benchmarks_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One imported a function that was gone: nobody could make its numbers again."""
    monkeypatch.setattr("sys.path", [str(path.parent), *sys.path])
    if "__main__" in path.read_text():
        assert callable(load(path).main)
    else:
        load(path)


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load(ROOT / "benchmarks/countdown/tables.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks as ``run.sh`` writes them, but for the hard one, which takes half a minute."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "ordinary")
    shutil.copytree(folder / "ordinary", folder / "hard")  # tables need no rows
    return folder


@pytest.fixture(scope="module")
def boards(tables: ModuleType, data: Path) -> dict[str, Board]:
    return {name: tables.board(name, data) for name in tables.COMPARISONS}


NAMES = ["ordinary", "hard", "long", "ablations"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tables_of_a_comparison_follow_from_its_records(
    name: str, boards: dict[str, Board]
) -> None:
    own = boards[name]
    found = arm_results(own)
    assert sum(own.record(j) is not None for j in own.jobs()) == own.total()
    assert (own.folder / "comparison.md").read_text() == as_markdown(own, found)
    made, kept = (
        list(csv.reader(text.splitlines()))
        for text in (as_csv(found), (own.folder / "comparison.csv").read_text())
    )
    assert [len(row) for row in made] == [len(row) for row in kept]
    for ours, theirs in zip(made, kept, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            try:  # sums may end with another last bit on another machine
                assert float(a) == pytest.approx(float(b), rel=1e-9, abs=1e-12)
            except ValueError:
                assert a == b


@pytest.mark.parametrize("name", ["ordinary", "long", "ablations"])
def test_the_records_are_of_this_recipe_and_these_rows(name: str, boards: dict[str, Board]) -> None:
    boards[name].check()


@pytest.mark.slow
def test_the_records_of_the_hard_comparison_too(tables: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "hard", **tables.TASKS["hard"])
    tables.board("hard", tmp_path).check()


@pytest.mark.slow
def test_anyone_makes_the_tables_again(tables: ModuleType, data: Path, tmp_path: Path) -> None:
    """The README's own command, on a copy of the folder."""
    from rich.console import Console

    results = ROOT / "benchmarks/countdown/results/ordinary"
    output = shutil.copytree(results, tmp_path / "ordinary")
    (output / "comparison.md").unlink()
    recipe = str(data / "ordinary/compare/methods.yaml")
    console = Console(quiet=True)
    overrides = [tables.AS_WRITTEN]
    assert run_compare(console, recipe, overrides, output=str(output), only_table=True) == []
    assert (output / "comparison.md").read_text() == (results / "comparison.md").read_text()
    assert (output / "comparison.html").is_file()


def rows_of(text: str) -> Iterator[list[list[str]]]:
    """The cells of each table on a page, its head left out."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [[c.strip() for c in x.strip().strip("|").split("|")] for x in table.splitlines()]
        yield cells[2:]


def test_the_page_has_the_tables_of_its_records(
    tables: ModuleType, boards: dict[str, Board]
) -> None:
    text = (ROOT / "benchmarks/countdown/README.md").read_text()
    results = text.partition("## Results")[2]
    there = list(rows_of(results))
    made = tables.all_tables(boards)
    assert len(there) == len(made)
    for page, (name, rows) in zip(there, made.items(), strict=True):
        assert [[c.replace("**", "") for c in row] for row in page] == rows, name
        for cell in (c for row in page for c in row if c.startswith("**")):
            _, low, high = map(float, re.findall(r"[-+]\d+\.\d", cell))
            assert low > 0 or high < 0, cell  # bold is what excludes zero


@pytest.fixture(scope="module")
def real_tables() -> ModuleType:
    return load(ROOT / "benchmarks/real/tables.py")


def test_the_page_of_the_real_model_has_the_table_of_its_records(
    real_tables: ModuleType, tmp_path: Path
) -> None:
    # Neither rows nor model, which would need the extra: the records have all numbers.
    shutil.copy(ROOT / "src/prefix_rft/tasks/arithmetic/compare.yaml", tmp_path)
    own = real_tables.board(tmp_path)
    assert sum(own.record(j) is not None for j in own.jobs()) == own.total()
    assert (own.folder / "comparison.md").read_text() == as_markdown(own, arm_results(own))
    text = (ROOT / "benchmarks/real/README.md").read_text()
    assert next(rows_of(text.partition("## Results")[2])) == real_tables.rows(own)


@pytest.mark.slow
def test_the_records_of_the_real_model_are_of_its_recipe_and_rows(
    real_tables: ModuleType, tmp_path: Path
) -> None:
    write_arithmetic(tmp_path)
    real_tables.board(tmp_path).check()


@dataclass(frozen=True)
class Later(Recipe):
    """A recipe with a key that a later version has."""

    later: str = "as before"
    kinds: tuple[str, ...] = ()


def test_a_key_that_came_later_leaves_records_valid(boards: dict[str, Board]) -> None:
    """At its default; with another value it is another recipe."""
    own = boards["ordinary"]
    later = replace(own, resolved=Later(**vars(own.resolved)), _data=None, records={})
    later.check()
    for change in ({"later": "in another way"}, {"kinds": ("a",)}, {"eval_samples": 5}):
        other = replace(later, resolved=replace(later.resolved, **change), _data=None)
        with pytest.raises(UserError, match="was run with another 'recipe'"):
            other.check()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"limit": 3}, False),
        ({"sha256": "b"}, False),
        ({"later": None}, True),  # a setting that came later, at its default
        ({"later": 1}, False),
        ({"reward_sha256": "c"}, True),  # what was not kept then cannot be compared
    ],
)
def test_settings_of_sets_likewise(change: dict[str, Any], same: bool) -> None:
    known = {"held-out": {"data": "x", "limit": None, "sha256": "a"}}
    now = {"held-out": {**known["held-out"], **change}}
    defaults = {"limit": None, "later": None}
    assert same_inputs(known, now, defaults) is same
    assert not same_inputs(known, {**now, "more": {}}, defaults)
    assert not same_inputs({"held-out": {**known["held-out"], "gone": 1}}, now, defaults)


# ---- the quickstart -----------------------------------------------------------------------------


def write_run(folder: Path, method: str, seed: int, trained: list[float]) -> None:
    """What a run of quickstart.sh leaves, as far as the page reads it."""
    folder.mkdir(parents=True)
    trainer = {"seed": seed, "max_steps": 800, "learning_rate": 0.0003}
    recipe = {"method": {"name": method}, "trainer": trainer, "prompts_per_step": 32}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def evaluation(rewards: list[float]) -> dict[str, Any]:
        mean = sum(rewards) / len(rewards)
        ends = {"low": mean - 0.1, "high": mean + 0.1}
        return {"problems": 4, "samples": 4, "mean": mean, "per_problem": rewards, **ends}

    both = {"base": evaluation([0.5, 0.25, 0.0, 0.25]), "trained": evaluation(trained)}
    (folder / "eval.json").write_text(json.dumps(both))
    machine = {"date": "2026-01-02T00:00:00", "system": "Linux", "device": "cpu"}
    packages = {"torch": "2.13.0", "trl": "1.16.0"}
    (folder / "environment.json").write_text(json.dumps({**machine, "packages": packages}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1, "train_runtime": 12.4}\n')


def test_the_quickstarts_page_by_hand(tmp_path: Path) -> None:
    quickstart = load(ROOT / "benchmarks/quickstart.py")
    problems = [{"numbers": [1, 2]}, {"numbers": [1, 2, 3]}, {"numbers": [3, 4, 5]}]
    problems.append({"numbers": [5, 6]})
    rows = tmp_path / "test.jsonl"
    rows.write_text("".join(json.dumps(p) + "\n" for p in problems))
    for method, step in (("prefix_rft", 0.25), ("dr_grpo", 0.0)):
        for seed in range(3):
            trained = [0.5 + step, 0.25, 0.25 * seed, 0.5]
            write_run(tmp_path / f"quickstart-{method}-{seed}", method, seed, trained)
    record = quickstart.record(tmp_path, rows)
    text = quickstart.page(json.loads(json.dumps(record)))
    [table] = rows_of(text)
    assert table[1] == [
        *("prefix_rft", "1", "43.8%", "33.8% to 53.8%"),  # (0.75 + 0.25 + 0.25 + 0.5) / 4
        *("62.5%", "25.0%", "12 s"),  # of (0.75, 0.5) and of (0.25, 0.25)
    ]
    assert "Base: 25.0%, interval 15.0% to 35.0%;" in text
    assert "two numbers 37.5%, three 12.5%." in text
    # Seeds 0, 1, 2 have 37.5, 43.75 and 50 %: mean 43.75, standard deviation 6.25.
    assert "prefix_rft 43.8% (standard deviation\n6.2%)" in text
    # One problem of four is 25 points apart: every mean of a resample is k / 4 of that.
    assert "- seed 0: +6.2% [+0.0%, +18.8%]" in text


def test_the_quickstarts_page_follows_from_its_record() -> None:
    """Its first runs left none, as the page says."""
    text = (ROOT / "benchmarks/quickstart.md").read_text()
    kept = ROOT / "benchmarks/quickstart.json"
    if not kept.is_file():
        assert "The records of these six runs were not kept" in text
    else:
        assert load(ROOT / "benchmarks/quickstart.py").page(json.loads(kept.read_text())) == text


# ---- what the index says of the others -----------------------------------------------------------


def said(name: str) -> str:
    """What the index of benchmarks says of a file."""
    text = (ROOT / "benchmarks/README.md").read_text()
    [row] = [row for table in rows_of(text) for row in table if row[0].startswith(f"[{name}]")]
    return row[2]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / name).read_text())


def to(value: float, step: str = "0.01") -> str:
    """A number as a reader rounds it."""
    return str(Decimal(str(value)).quantize(Decimal(step), ROUND_HALF_UP))


def test_the_tables_of_a_step_follow_from_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(ROOT / "benchmarks"), *sys.path])
    step = load(ROOT / "benchmarks/step.py")
    small, real = result("step.json"), result("step_smollm2.json")
    made = [
        step.as_bounds_table([small, real]),
        step.as_table(real),
        step.as_table(small),
        step.as_sweep_table(small),
    ]
    text = (ROOT / "benchmarks/README.md").read_text()
    section = re.split("^## ", text.partition("\n## A step\n")[2], flags=re.MULTILINE)[0]
    there = list(rows_of(section))
    head = "| head |\n|---|\n"
    assert there == [rows for table in made for rows in rows_of(head + table)]
    for found in (small, real):
        commands = [row[1] for table in rows_of(text) for row in table if len(row) == 3]
        assert f"`{found['command']}`" in commands
        assert not found["git"]["dirty"]
        several = {x["rounds"] for x in ratios_of(found)}
        assert max(several) == found["rounds"] >= 2
    half = real["flat_groups"]["0.5"]
    update, sampling = (
        to(half["ratios"]["trl / dr_grpo"][f"{phase}_seconds"]["median"], "0.1")
        for phase in ("update", "sampling")
    )
    words = " ".join(section.split())
    fast = f"the update is {update} times as fast as stock TRL's, sampling {sampling} times"
    assert fast in words
    ours = half["variants"]["dr_grpo"]
    assert f"sampling is {ours['sampling_seconds'] / ours['seconds']:.0%} of our step" in words


def ratios_of(found: Any) -> list[dict[str, float]]:
    """Every ratio of a step in a record, each of them between its least and its largest."""
    parts = found["flat_groups"].values()
    ratios = [r["seconds"] for part in parts for r in part["ratios"].values()]
    assert all(r["min"] <= r["median"] <= r["max"] for r in ratios)
    return ratios


def test_the_tables_of_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(ROOT / "benchmarks"), *sys.path])
    step = load(ROOT / "benchmarks/step.py")
    work = step.Work(prompts=2, completion_tokens=10, settings=(0.0, 0.5))

    def measured(seconds: float, sampling: float) -> dict[str, Any]:
        one = {"seconds": seconds, "sampling_seconds": sampling, "update_flop": 30.0}
        one |= {"update_seconds": seconds - sampling}
        both = {"0.0": one, "0.5": {**one, "seconds": seconds / 2}}
        return {"settings": both, "peak_bytes": 1.26e9, "matrix_rate": 40.0, "parameters": 5}

    rounds = [
        {"trl": measured(8, 2), "dr_grpo": measured(4, 1), "prefix_rft": measured(4, 2)},
        {"trl": measured(9, 3), "dr_grpo": measured(3, 1), "prefix_rft": measured(3, 1)},
        {"trl": measured(10, 2), "dr_grpo": measured(4, 2), "prefix_rft": measured(6, 1)},
    ]
    found = step.as_result(work, rounds, None)
    # Ratios 2, 3, 2.5; 160 tokens in 9 s; 30 FLOPs in 6, 6 and 8 s of 40 a second.
    trl, ours, prefix = [
        row for rows in rows_of("|a|\n|-|\n" + step.as_table(found)) for row in rows
    ]
    assert trl == ["trl", *["2.50 (2.00 to 3.00)"] * 2, "2", "6", "18", "12%", "1.3"]
    assert ours[:3] == ["dr_grpo", "1", "1"]
    assert prefix[1] == "1.00 (1.00 to 1.50)"
    bounds = [b.split("|")[2].strip() for b in step.as_bounds_table([found]).splitlines()]
    assert bounds == ["2.500, kept", "2.500, missed", "1.000, kept", "1.000, kept"]


def test_groups_are_flat_as_planned() -> None:
    """None in the warm-up and the first step, half of the four in the second, and so on."""
    module = load(ROOT / "benchmarks/step_work.py")
    rows = ["any"] * 32
    flat = []
    for step in range(5):
        moment = SimpleNamespace(global_step=step)
        given, again = (module.make_reward(module.Work())(rows, moment) for _ in range(2))
        assert given == again
        groups = [given[i : i + 8] for i in range(0, 32, 8)]
        flat.append(sum(len(set(group)) == 1 for group in groups))
        assert all(sum(group) in (0, 4, 8) for group in groups)
    assert flat == [0, 0, 2, 0, 2]


def test_the_index_says_what_is_in_the_files() -> None:
    """Each number that it names."""
    for one in result("check.json")["results"]:
        size = f"{to(one['seconds'], '1')} s and {to(one['peak_MB'] / 1000)} GB"
        assert size in said("check.json")
    grading = result("grading.json")["rounds"]
    for workers in ("1", "2"):
        rates = sorted(r[workers] for r in grading)
        assert f"{to(rates[0])} to {to(rates[-1])}" in said("grading.json")
    found, words = result("divergence.json"), said("divergence.json")
    assert f"chunks of {found['tokens_of_a_chunk']} tokens, {found['hidden']} hidden" in words
    assert f"KL of {found['chunked']['forward']['tokens']:,} tokens" in words
    sizes = [to(c["extra_bytes"] / 2**30) for c in found["chunked"].values()]
    assert re.findall(r"(0\.\d+) GiB", words) == sizes  # in the order of the record
    assert max(sizes) < "1"
    both = found["beside"]["divergences"].values()
    dense = sorted(b["extra_bytes"]["dense"] / 2**30 for b in both)
    whole = f"logits of {found['beside']['tokens']} tokens need {to(dense[0])} to {to(dense[-1])}"
    assert whole in words
    times = sorted(b["seconds_chunked_over_dense"]["median"] for b in both)
    assert f"{to(times[0])} to {to(times[-1])} times the CPU time" in words
    cases = result("memory.json")["cases"].values()
    ratios = sorted(r for c in cases for r in c["ratio"].values())
    assert f"estimate / measured {to(ratios[0])} to {to(ratios[-1])}" in said("memory.json")
    *sizes, real, again = sorted(c["parameters"] / 1e6 for c in cases)
    assert f"{to(sizes[0], '1')} to {to(sizes[-1], '1')} million" in said("memory.json")
    assert len(sizes) == 5
    assert "five models" in said("memory.json")
    assert real == again
    assert f"SmolLM2-{to(real, '1')}M in two steps" in said("memory.json")
    report, words = result("report.json"), said("report.json")
    assert f"{report['steps']:,} steps with {report['rollouts']:,} rollouts" in words
    assert f"written in {to(report['write_seconds'], '0.1')} s" in words
    assert f"{to(report['megabytes'], '0.1')} MB" in words
    assert f"opened by chromium in {to(report['open_seconds'])} s" in words
