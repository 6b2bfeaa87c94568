"""The disk refuses a file: the run names it, older checkpoints stay whole, and the run goes on."""

import json
import shutil
from pathlib import Path

import killed_runs as killed
import pytest

from prefix_rft.runs.checkpoints import checkpoints, fault

# Saves after 2, 4 and 6 steps; from the second generation on a checkpoint holds rollouts, too.
OVERRIDES = ["max_steps=6", "num_iterations=2", "steps_per_generation=4"]
KINDS = ("ENOSPC", "EIO", "short")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("task")
    killed.write_task(folder)
    assert killed.run(folder / "recipe.yaml", folder / "whole", OVERRIDES, killed.Writes()) == 0
    return folder


def files(whole: Path) -> list[tuple[int, str]]:
    """Every file that the run has written, with the step of the newest checkpoint then."""
    return [(step, name) for step, name in json.loads((whole / "whole.counts.json").read_text())]


def refuse(whole: Path, runs: Path, kind: str, number: int) -> None:
    recipe = whole / "recipe.yaml"
    saved, name = files(whole)[number]
    status = killed.run(recipe, runs, OVERRIDES, killed.Writes(kind, number))
    said = runs.with_suffix(".error.txt").read_text().splitlines()[-1]
    assert status == 1, name
    assert said.startswith("prefix_rft.support.errors.UserError: "), said
    assert name.removesuffix(".part") in said
    assert "cannot be written" in said
    left = checkpoints(runs / "run")
    assert max(left, default=0) == saved
    assert [fault(p) for p in left.values()] == [None] * len(left)
    assert killed.run(recipe, runs, OVERRIDES) == 0
    found, expected = (killed.evidence(x / "run") for x in (runs, whole / "whole"))
    for part in expected:
        assert found[part] == expected[part], part


WANTED = ("model.safetensors", "optimizer.pt", "rollouts_0.safetensors", "metrics.jsonl")


@pytest.mark.slow
def test_every_kind_of_file_is_written(whole: Path) -> None:
    """What the tests below refuse."""
    names = {name.removesuffix(".part") for _, name in files(whole)}
    assert names >= {
        *WANTED,
        *("config.json", "tokenizer.json", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
        *("method_state.json", "run_state_0.json", "manifest.json"),
        *("recipe.yaml", "environment.json", "step_000000.jsonl", "kept_000000.jsonl"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("model.safetensors", "ENOSPC"), ("metrics.jsonl", "short")]
)
def test_a_refused_file(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    number = next(i for i, (step, n) in enumerate(files(whole)) if n == name and step)
    refuse(whole, tmp_path / "runs", kind, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_any_refused_file(whole: Path, tmp_path: Path, kind: str) -> None:
    """From the first file of the run to the last."""
    for number in range(len(files(whole))):
        refuse(whole, tmp_path / "runs", kind, number)
        shutil.rmtree(tmp_path / "runs")
