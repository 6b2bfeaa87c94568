"""``prefix-rft compare``: what it refuses before anything runs."""

from pathlib import Path

import pytest
import yaml

from prefix_rft.cli import main
from prefix_rft.compare.command import board_of
from prefix_rft.tasks.countdown import write

BAD: dict[str, tuple[list[str], str]] = {
    "no recipe": (["none.yaml"], "recipe 'none.yaml' does not exist"),
    "no eval_data": (["recipe.yaml", "eval_data=null"], "needs eval_data and a reward"),
    "no reward": (["recipe.yaml", "reward=null"], "reward"),
    "no budget": (["recipe.yaml", "~max_steps"], "needs max_steps in the recipe"),
    "stages": (["recipe.yaml", "stages=[{method: sft}, {method: grpo}]"], "arms, not stages"),
    "jobs": (["recipe.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    "rates": (["recipe.yaml", "--sft-learning-rates", "a,b"], "takes numbers and commas"),
    "method": (["recipe.yaml", "--methods", "sft,prefix_rtf"], "unknown method 'prefix_rtf'"),
    "arm's key": (
        ["recipe.yaml", "compare={arms: {a: {learnin_rate: 1}}}"],
        "arm 'a': unknown recipe key 'learnin_rate': did you mean 'learning_rate'",
    ),
    "arm's option": (
        ["recipe.yaml", "compare={arms: {a: {method.entropy_kep: 1}}}"],
        "did you mean 'entropy_keep'",
    ),
    "along the way": (
        ["recipe.yaml", "eval_every=2", "eval_every_samples=2"],
        "leave out eval_every and eval_every_samples (~eval_every ~eval_every_samples on the",
    ),
    "a choice along the way": (
        ["recipe.yaml", "eval_every=2", "keep=best", "stop_after=3"],
        "leave out eval_every and keep and stop_after (~eval_every ~keep ~stop_after on the",
    ),
    "along the way of an arm": (
        ["recipe.yaml", "compare={arms: {a: {eval_every: 2}}}"],
        "arm 'a': a comparison trains every arm for all its steps and evaluates it then",
    ),
    "output": (["recipe.yaml", "--output", "recipe.yaml"], "--output 'recipe.yaml' is a file"),
    "folder of output": (["recipe.yaml", "--output", "no/where"], "--output 'no/where'"),
    "nothing is done": (["recipe.yaml", "--only-table"], "no run of 'comparisons/countdown'"),
}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, 40, 12, 0, 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", BAD)
def test_refused(task: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    command, message = BAD[name]
    before = sorted(task.rglob("*"))
    assert main(["compare", *command]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert sorted(task.rglob("*")) == before


@pytest.mark.parametrize(
    "recipe",
    [
        "recipe.yaml",
        pytest.param("compare/methods.yaml", marks=pytest.mark.slow),
        pytest.param("compare/quick.yaml", marks=pytest.mark.slow),
    ],
)
def test_recipes_that_come_with_the_task_can_be_compared(task: Path, recipe: str) -> None:
    board = board_of(recipe, [], None, None, None, None)
    names = [a.name for a in board.comparison.arms]
    assert set(names) == {"sft", "sft+dr_grpo", "dr_grpo", "prefix_rft", "sft+prefix_rft"}
    assert board.comparison.reference == "prefix_rft"


@pytest.mark.slow
def test_every_ablation_is_one_switch(task: Path) -> None:
    # The worse demonstrations are another task's.
    write(task / "worse", 40, 12, 0, 8, solver_accuracy=0.5)
    board = board_of("compare/ablations.yaml", [], None, None, None, None)
    arms = {a.name: a for a in board.comparison.arms}
    assert all(len(a.keys) == 1 for name, a in arms.items() if name != "prefix_rft")
    assert {"keep/5", "keep/50", "keep/80", "keep/100", "tokens/low", "tokens/random"} <= set(arms)
    assert {"prefix_loss/frozen", "prefix_loss/static", "schedule/constant"} <= set(arms)
    assert {"demonstrations/10", "demonstrations/1", "demonstrations/worse"} <= set(arms)
    assert {"hybrid_rows/2", "hybrid_rows/4", "advantage/prefix_group"} <= set(arms)
    data = yaml.safe_load((task / "compare/ablations.yaml").read_text())
    assert data["method"] == "prefix_rft"
