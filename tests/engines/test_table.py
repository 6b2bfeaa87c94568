"""An engine is one row of a table: what the row's module must have, and that nothing else asks."""

import inspect
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from prefix_rft.checks.report import run_check
from prefix_rft.compare.inputs import deciding
from prefix_rft.engines import setup as table
from prefix_rft.engines.setup import configure
from prefix_rft.engines.trl import from_recipe as trl
from prefix_rft.recipe.recipe import ENGINES, EngineRow
from prefix_rft.recipe.resolved import resolved
from prefix_rft.support.errors import UserError
from prefix_rft.training.train import train
from tiny import make_model, make_rows, make_tokenizer

WANTED = {n: f for n, f in vars(table.Engine).items() if inspect.isfunction(f) and n[0] != "_"}
SOURCE = Path(table.__file__).parents[1]


@pytest.mark.parametrize("name", ENGINES)
def test_the_module_has_what_an_engine_has(name: str) -> None:
    module = table.engine_of(name)
    assert isinstance(module.RUNS_ITSELF, bool)
    assert isinstance(module.DROPS_UNREADABLE, bool)
    for function, wanted in WANTED.items():
        own = inspect.signature(getattr(module, function)).parameters
        assert list(own) == list(inspect.signature(wanted).parameters)[1:], function


def test_nobody_else_asks_for_an_engine_by_name() -> None:
    asking = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if any(f'engine == "{name}"' in path.read_text() for name in ENGINES)
    }
    assert asking == set()


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A third engine: a module, and its row."""
    module = ModuleType("third_engine")
    vars(module).update({k: v for k, v in vars(trl).items() if not k.startswith("__")})
    module.RUNS_ITSELF = True
    module.ran = []

    def refuse(recipe: Any, method: Any) -> None:
        if recipe.rif is not None:
            raise UserError("engine third has no rif")

    def run(recipe: Any, args: Any, folder: Path, console: Console, resume: bool) -> None:
        settings = recipe.engine_settings["third"]
        module.ran.append((recipe.engine, args.max_steps, folder.name, resume, settings))

    module.refuse, module.run = refuse, run
    module.verify_settings = lambda recipe, args: "engine third: looked at"
    monkeypatch.setitem(sys.modules, "third_engine", module)
    monkeypatch.setitem(ENGINES, "third", EngineRow("third_engine", True))
    return module


def test_a_third_engine_is_its_row_alone(
    third: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained("base")
    tokenizer.save_pretrained("base")
    make_rows(8).to_json("rows.jsonl")
    Path("recipe.yaml").write_text(
        "model: base\ntrain_data: rows.jsonl\nreward: exact\nengine: third\nmax_steps: 2\n"
        "prompts_per_step: 2\nmax_completion_length: 32\nthird: {nodes: 2, disk.size: 3}\n"
    )
    console = Console(record=True, width=100)
    run_check("recipe.yaml", [], console)
    assert "engine third: looked at" in console.export_text()
    assert train("recipe.yaml", ["third.nodes=4"], Console(quiet=True)) == Path("runs/run")
    assert third.ran == [("third", 2, "run", False, {"nodes": 4, "disk.size": 3})]
    with closing(configure("recipe.yaml")) as setup:
        plain = resolved(setup.recipe, setup.method, setup.args)
    order = ["engine", "verl", "third", "method", "model_init_kwargs", "trainer"]
    assert list(plain)[-6:] == order
    assert (plain["verl"], plain["third"]) == ({}, {"nodes": 2, "disk.size": 3})
    # Records of comparisons that were made before there was such an engine stay those of today.
    assert "verl" not in deciding(setup.recipe)
    assert deciding(setup.recipe)["third"] == {"nodes": 2, "disk.size": 3}
    with pytest.raises(UserError, match="'third' has no effect without engine: third"):
        configure("recipe.yaml", ["engine=trl"])
    with pytest.raises(UserError, match="recipe key 'third' must be a mapping, got 3"):
        configure("recipe.yaml", ["third=3"])
    with pytest.raises(UserError, match="unknown recipe key 'thrid': did you mean 'third'"):
        configure("recipe.yaml", ["thrid={}"])
    with pytest.raises(UserError, match="third has no rif"):
        train("recipe.yaml", ["rif={}"], Console(quiet=True))
    with pytest.raises(UserError, match="unknown engine 'thrid': did you mean 'third'"):
        train("recipe.yaml", ["engine=thrid"], Console(quiet=True))
