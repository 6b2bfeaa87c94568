"""A run has one method: what is estimated, written, trained and named on resume is the same one."""

import io
import pickle
from dataclasses import fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from prefix_rft import PrefixRFTTrainer
from prefix_rft.checks.report import show_memory
from prefix_rft.checks.weights import count_weights
from prefix_rft.cli import main
from prefix_rft.compare.command import board_of
from prefix_rft.engines.models import load_configs
from prefix_rft.engines.options import SHARED, with_const
from prefix_rft.engines.setup import configure, set_up
from prefix_rft.engines.trl import DemonstrationConfig
from prefix_rft.engines.verl import from_recipe as cluster
from prefix_rft.engines.verl.method_config import MethodConfig
from prefix_rft.methods import load
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.recipe.resolved import resolved
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.errors import UserError
from prefix_rft.training.resume import changes
from prefix_rft.training.train import train
from tables import rest_slow
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer

VALUES = {"epsilon": 0.11, "epsilon_high": 0.33, "delta": 3.0, "beta": 0.07, "entropy_coef": 0.02}
"""Neither TRL's defaults nor those of a method."""
METHOD = '''
from dataclasses import replace

from prefix_rft.methods import load
from prefix_rft.engines.models import load_configs

calls = []


def counted(beta: float = 0.0):
    """It counts how often it is made, and no two are equal."""
    calls.append(beta)
    return replace(load("grpo", beta=beta), name=f"counted {len(calls)}")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("task")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(made / "base")
    tokenizer.save_pretrained(made / "base")
    make_rows(16).to_json(made / "train.jsonl")
    (made / "recipe.yaml").write_text(
        "model: base\ntrain_data: train.jsonl\nreward: exact\nmax_completion_length: 24\n"
        "num_generations: 4\nprompts_per_step: 2\nmax_steps: 1\nsave_strategy: 'no'\n"
    )
    return made


def given(key: str, value: Any, how: str) -> list[str]:
    """Overrides that give a key as TRL's, as the method's, or as both."""
    text = "null" if value is None else value
    flat, under = f"{key}={text}", f"method.{key}={text}"
    return {"flat": [flat], "under": [under], "both": [flat, under]}[how]


@pytest.mark.parametrize(
    ("key", "how"),
    rest_slow(
        product(SHARED, ("flat", "under", "both")),
        lambda key, how: how == ("both" if key in ("beta", "delta") else "flat"),
    ),
)
def test_every_place_has_the_same_method(key: str, how: str, folder: Path, tmp_path: Path) -> None:
    value = VALUES[key]
    asked = given(key, value, how)
    named = ["method={name: prefix_rft}", f"runs={tmp_path}", *asked]
    setup = configure(str(folder / "recipe.yaml"), named)
    setup.close()
    assert setup.method.about.options[key] == value
    wanted = with_const(load("prefix_rft", **{key: value}), 24)
    assert setup.method == wanted != with_const(load("prefix_rft"), 24)
    assert setup.args.resolve_method() is setup.method  # it is the trainer's
    assert getattr(setup.args, key) == value  # TRL's own parts read it there
    written = resolved(setup.recipe, setup.method, setup.args)
    assert written["method"][key] == written["trainer"][key] == value
    # What the run folder says is a recipe of the same method again.
    again = tmp_path / "again.yaml"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    again.write_text(yaml.safe_dump({**recipe, "method": written["method"]}))
    setup = configure(str(again), [])
    setup.close()
    assert setup.method == wanted
    # On verl the method is made in other processes, of what they are told.
    setup = configure(str(folder / "recipe.yaml"), [*named, "engine=verl"])
    setup.close()
    told = cluster.settings(setup.recipe, setup.args, tmp_path / "x", resume=False)
    block = {f.name: told[k] for f in fields(MethodConfig) if (k := f"prefix_rft.{f.name}") in told}
    assert MethodConfig(**block).resolve_method(4, 24) == setup.method


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("uft", "beta", 0.0),
        ("r3", "beta", 0.0),
        ("relift", "entropy_coef", 0.0),
        ("gspo", "epsilon", 0.2),
        ("cispo", "epsilon", 0.2),
        ("dapo", "epsilon_high", None),
        ("cispo", "epsilon_high", None),
    ],
)
def test_trls_default_is_a_value_when_it_is_given(
    method: str, key: str, value: Any, folder: Path
) -> None:
    """These methods have another default: what the recipe says was ignored."""
    assert load(method).about.options[key] != value
    setup = configure(str(folder / "recipe.yaml"), [f"method={method}", *given(key, value, "flat")])
    setup.close()
    assert setup.method.about.options[key] == value
    assert setup.method == with_const(load(method, **{key: value}), 24)
    assert setup.args.resolve_method() is setup.method
    assert getattr(setup.args, key) == value


@pytest.mark.parametrize("key", SHARED)
def test_two_values_are_refused(key: str, folder: Path) -> None:
    other = {f.name: f.default for f in fields(type(make_config(folder)))}[key]  # TRL's default too
    for flat in (other, VALUES[key] / 2):
        asked = [*given(key, flat, "flat"), *given(key, VALUES[key], "under")]
        with pytest.raises(UserError) as caught:
            configure(str(folder / "recipe.yaml"), ["method={name: prefix_rft}", *asked])
        assert str(caught.value) == (
            f"{key} is {flat} as a key of the recipe and {VALUES[key]} under method: give it in "
            "one of the two"
        )


@pytest.mark.parametrize(
    ("method", "asked", "words"),
    [
        ("srft", "beta=0.1", "beta=0.1 has no effect: 'srft' has no beta"),
        ("srft", "beta=0.0", "beta=0.0 has no effect: 'srft' has no beta"),
        ("rloo", "epsilon=0.2", "option 'epsilon' has no effect in method 'rloo'"),
        ("cispo", "delta=9.0", "option 'delta' has no effect in method 'cispo'"),
        ("sft", "beta=0.1", "beta=0.1 has no effect: 'sft' has no beta"),
        ("grpo", "beta=high", "must be a number"),
    ],
)
def test_what_has_no_effect_is_refused(method: str, asked: str, words: str, folder: Path) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        configure(str(folder / "recipe.yaml"), [f"method={method}", asked])


def estimated(recipe: Path, *overrides: str) -> bool:
    """Whether the memory estimate has a reference model."""
    console = Console(record=True, width=120, file=io.StringIO())
    setup = configure(str(recipe), overrides)
    setup.close()
    lengths: Any = SimpleNamespace(prompt_lengths=[8])
    config, _ = load_configs(setup.recipe.model_source())
    show_memory(console, setup, lengths, config, count_weights(setup, config))
    return "reference model" in console.export_text()


@pytest.mark.parametrize("how", rest_slow(["flat", "under", "both"], lambda how: how == "flat"))
def test_the_estimate_is_of_that_method(how: str, folder: Path) -> None:
    asked = given("beta", 0.1, how)
    recipe = folder / "recipe.yaml"
    assert estimated(recipe, "method={name: grpo}", *asked)
    assert not estimated(recipe, "method={name: grpo}")
    assert estimated(recipe, "method=r3")  # its own default is 0.05
    assert not estimated(recipe, "method={name: r3}", *given("beta", 0.0, how))


def test_check_and_inspect_take_it_from_there(folder: Path, capfd: Any) -> None:
    recipe = str(folder / "recipe.yaml")
    main(["check", recipe, "beta=0.1"])
    assert "reference model" in capfd.readouterr().out
    main(["check", recipe])
    assert "reference model" not in capfd.readouterr().out


def test_it_is_made_once_in_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a method whose function gives another one every time."""
    (folder / "counting.py").write_text(METHOD)
    trained = []
    init = PrefixRFTTrainer.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        trained.append(self.method)

    monkeypatch.setattr(PrefixRFTTrainer, "__init__", spy)
    asked = ["method=counting:counted", "beta=0.1", f"runs={tmp_path}"]
    run = train(str(folder / "recipe.yaml"), asked, Console(quiet=True))
    import counting  # pyright: ignore[reportMissingImports]

    assert counting.calls == [0.1]
    assert [m.name for m in trained] == ["counted 1"]
    recipe = RunFolder(run).recipe()
    assert recipe["method"] | recipe["trainer"]["method_options"] == recipe["method"]
    assert recipe["method"]["beta"] == recipe["trainer"]["beta"] == 0.1


def test_arguments_that_change_have_another_method(tmp_path: Path) -> None:
    """As TRL's own arguments, they count as they are when the trainer is made."""
    config = make_config(tmp_path)
    before = config.resolve_method()
    assert config.resolve_method() is before
    config.beta = 0.1
    assert config.resolve_method() == with_const(load("prefix_rft", beta=0.1), 24)
    config.max_completion_length = 12
    assert config.resolve_method().normaliser.const == 12
    config.method_options = {"entropy_keep": 0.5}
    selection = config.resolve_method().selection
    assert selection is not None
    assert selection.fraction == 0.5
    copy = pickle.loads(pickle.dumps(config))  # noqa: S301  (our own)
    assert copy.resolve_method() == config.resolve_method()
    sft = DemonstrationConfig(str(tmp_path), use_cpu=True, bf16=False, **NO_RECOMPUTE)
    assert sft.resolve_method() is sft.resolve_method()
    sft.method = "dft"
    assert sft.resolve_method().name == "dft"


def test_stages_and_arms_have_their_own(folder: Path, tmp_path: Path) -> None:
    recipe = folder / "staged.yaml"
    recipe.write_text(
        (folder / "recipe.yaml").read_text()
        + "stages: [{method: grpo, beta: 0.1}, {method: r3, beta: 0.0}, {method: r3}]\n"
    )
    for stage, (beta, needed) in enumerate([(0.1, True), (0.0, False), (0.05, True)]):
        setup = set_up(RecipeFile.read(recipe), stage)
        setup.close()
        assert (setup.method.about.options["beta"], setup.method.needs_reference) == (beta, needed)
        assert setup.args.beta == beta
    compared = folder / "compared.yaml"
    compared.write_text(
        (folder / "recipe.yaml").read_text()
        + "eval_data: train.jsonl\ncompare: {arms: {a: {method: grpo}, b: {method: srft}}}\n"
    )
    output = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"arm 'b': beta=0\.1 has no effect"):
        board_of(str(compared), ["beta=0.1"], None, None, None, output)


def test_a_resumed_run_is_not_told_of_a_change_that_was_none(folder: Path) -> None:
    """Folders of before have the method's default where a shared key was given by itself."""
    setup = configure(str(folder / "recipe.yaml"), ["beta=0.1", "method={name: prefix_rft}"])
    setup.close()
    now = resolved(setup.recipe, setup.method, setup.args)
    before = {
        **now,
        "method": {**now["method"], "beta": 0.0},
        "trainer": {**now["trainer"], "method_options": {}},
    }
    assert changes(before, now) == changes(now, now) == {}
    setup = configure(str(folder / "recipe.yaml"), ["beta=0.2", "method={name: prefix_rft}"])
    setup.close()
    other = resolved(setup.recipe, setup.method, setup.args)
    told = {"method.beta": ["0.1", "0.2"]}
    assert changes(before, other) == changes(now, other) == told
    old_default = {**now, "trainer": {**now["trainer"], "beta": 0.0}, "method": before["method"]}
    assert changes(old_default, now) == {"method.beta": ["0.0", "0.1"]}
