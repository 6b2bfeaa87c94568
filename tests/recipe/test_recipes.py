"""Every method trains through its recipe, resumes with its own state, reports split metrics."""

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft.methods import BUILT_IN, load
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.recipe.stages import stage_names
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.countdown import write
from prefix_rft.training.train import train
from tables import rest_slow

RECIPES = Path(__file__).parents[2] / "src/prefix_rft/tasks/countdown/recipes"
PAGES = Path(__file__).parents[2] / "docs/methods"
STAGED = "sft_then_rl"
NAMES = sorted(p.stem for p in RECIPES.glob("*.yaml"))
QUICK = ("prefix_rft",)
STATE = dict.fromkeys(("adaback", "pope", "control", "adaprefix", "discriminative"), "examples")
INTERLEAVED = ("relift", "mifo")
ROWS = 100
SMALL = (
    "prompts_per_step=8",
    "micro_batch_size=null",
    "eval_data=null",
    "save_strategy=steps",
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("countdown")
    write(folder, ROWS, 20, 0)
    return folder


def test_every_method_has_a_recipe_and_a_page() -> None:
    for name in BUILT_IN:
        assert (RECIPES / f"{name}.yaml").is_file(), name
        assert RecipeFile.read(RECIPES / f"{name}.yaml").recipe().method_name == name
        page = (PAGES / f"{name}.md").read_text()
        headings = ("What it is for", "## Equation", "## The lines", "switch", "## Recipe")
        missing = [h for h in (*headings, "## Metrics to watch", "arXiv") if h not in page]
        assert missing == [], f"docs/methods/{name}.md lacks {missing}"
        # What could not be verified is said on the page, not only in the code.
        said = " ".join(page.partition("## Not verified")[2].split())
        unverified = load(name).about.unverified
        assert said.lower().startswith(unverified.lower()), f"{name}.md: begin with {unverified!r}"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_the_lines_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for link, name in re.findall(r"\]\((\S+\.py)\),\s+`(\w+)`", text):
        source = (page.parent / link).read_text()
        assert re.search(rf"(def|class) {name}\b|\b{name}\b *[:=]|\"{name}\"", source), (link, name)


def run(task: Path, name: str, runs: Path, *more: str) -> Path:
    overrides = [*SMALL, f"runs={runs}", *more]
    return train(str(task / "recipes" / f"{name}.yaml"), overrides, Console(quiet=True))


@pytest.mark.parametrize(
    "name",
    rest_slow((n for n in NAMES if n != STAGED), lambda name: name in QUICK),
)
def test_a_recipe_trains_and_resumes(task: Path, tmp_path: Path, name: str) -> None:
    half, steps = (2, 4) if name in QUICK else (12, 24)
    own = [f"max_steps={steps}", f"save_steps={half}"]
    own += ["method.sft_prompts=12"] if name in INTERLEAVED else []
    folder = run(task, name, tmp_path / "runs", *own)
    whole = load_file(folder / "model/model.safetensors")
    base = load_file(task / "base/model.safetensors")
    assert any(not whole[k].equal(base[k]) for k in whole)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "loss" in x]
    assert [x["step"] for x in lines] == list(range(1, steps + 1))
    method = load(RecipeFile.read(RECIPES / f"{name}.yaml").recipe().method_name)
    seen = {k for x in lines for k in x}
    for origin in ("policy", "prefix", "demonstration"):
        if method.trains(origin) and method.groups.interleave is None:
            # All rows of a group may start from a prefix: then none is on-policy.
            either = {f"{origin}/logp"} | ({"continuation/logp"} if method.planner else set())
            assert either & seen, origin
    if method.samples:
        assert {"policy/reward", "groups/all_wrong", "groups/dropped"} <= seen or (
            "prefix/reward" in seen  # all rows of a group may start from a prefix
        )

    state = json.loads((folder / f"checkpoint-{steps}/method_state.json").read_text())
    then = json.loads((folder / f"checkpoint-{half}/method_state.json").read_text())
    if name in STATE:
        assert then[STATE[name]]
    if name in INTERLEAVED:
        imitated = [x for x in lines if x["interleave/step"] == 1.0]
        assert then["waiting"]
        assert imitated
        assert all("demonstration/logp" in x and "policy/logp" not in x for x in imitated)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / f"checkpoint-{steps}")
    own.append(f"resume_from_checkpoint={folder}/checkpoint-{half}")
    again = run(task, name, tmp_path / "runs", *own)
    assert again == folder
    assert json.loads((folder / f"checkpoint-{steps}/method_state.json").read_text()) == state
    resumed = load_file(folder / "model/model.safetensors")
    assert all(resumed[k].equal(whole[k]) for k in whole)


@pytest.mark.parametrize("name", ["sft", pytest.param("prefix_rft", marks=pytest.mark.slow)])
def test_from_its_last_checkpoint_nothing_is_trained(name: str, task: Path, tmp_path: Path) -> None:
    """transformers would take a step more; and the last line of the metrics may be cut off."""
    own = ["max_steps=3", "save_steps=3"]
    folder = run(task, name, tmp_path, *own)
    whole = load_file(folder / "model/model.safetensors")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    shutil.rmtree(folder / "model")
    assert (
        run(task, name, tmp_path, *own, f"resume_from_checkpoint={folder}/checkpoint-3") == folder
    )
    resumed = load_file(folder / "model/model.safetensors")
    assert all(resumed[k].equal(whole[k]) for k in whole)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3}


@pytest.mark.slow
def test_stages_hand_over_weights_and_tokenizer(task: Path, tmp_path: Path) -> None:
    recipe = str(task / "recipes" / f"{STAGED}.yaml")
    runs = tmp_path / "runs"
    overrides = [
        *SMALL[:1],
        "stages.1.max_steps=4",
        "stages.2.max_steps=4",
        "stages.2.micro_batch_size=null",
        "eval_data=null",
        "save_strategy=steps",
        "save_steps=2",
        f"runs={runs}",
    ]
    folder = train(recipe, overrides, Console(quiet=True))
    first = runs / "countdown-sft-rl-1-sft"
    assert folder == runs / "countdown-sft-rl-2-dr_grpo"
    assert RecipeFile.read(folder / "recipe.yaml").recipe().model == str(
        (first / "model").resolve()
    )
    assert (folder / "model/tokenizer.json").is_file()
    one, two, base = (
        load_file(f / "model.safetensors")
        for f in (first / "model", folder / "model", task / "base")
    )
    assert any(not one[k].equal(base[k]) for k in one)
    assert any(not two[k].equal(one[k]) for k in two)
    # Resumed in its second stage: the first one is not trained again.
    shutil.rmtree(folder / "model")
    before = (first / "metrics.jsonl").read_text()
    more = [f"resume_from_checkpoint={folder}/checkpoint-2"]
    assert train(recipe, [*overrides, *more], Console(quiet=True)) == folder
    resumed = load_file(folder / "model/model.safetensors")
    assert all(resumed[k].equal(two[k]) for k in two)
    assert (first / "metrics.jsonl").read_text() == before
    assert sorted(p.name for p in runs.iterdir()) == [first.name, folder.name]


def test_a_method_of_your_own(task: Path, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    overrides = [f"model={task}/base", f"train_data={task}/train.jsonl", f"runs={tmp_path}"]
    folder = train(
        str(examples / "custom_method.yaml"),
        [*SMALL, "max_steps=4", "save_steps=2", *overrides],
        Console(quiet=True),
    )
    state = json.loads((folder / "checkpoint-4/method_state.json").read_text())
    rates = [v["solve_rate"] for v in state["examples"].values()]
    assert rates
    assert all(0 <= r <= 1 for r in rates)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert 0 <= last["prefix/weight"] <= 1


@pytest.mark.slow
def test_rif_leaves_out_what_is_never_solved(task: Path, tmp_path: Path) -> None:
    folder = run(task, "rif", tmp_path, "max_steps=2", "save_strategy=no", "rif.samples=4")
    record = json.loads((folder / "rif.json").read_text())
    assert len(record["solved"]) == ROWS
    assert sum(record["prompts_by_solved"]) == ROWS
    assert max(record["solved"]) <= 4
    used = {
        json.loads(line)["prompt"]
        for path in (folder / "rollouts").glob("step_*.jsonl")
        for line in path.read_text().splitlines()
    }
    rows = [json.loads(x)["prompt"] for x in (task / "train.jsonl").read_text().splitlines()]
    solved = {p for p, n in zip(rows, record["solved"], strict=True) if n}
    assert used
    assert used <= solved
    assert set(rows) - solved


@pytest.mark.slow
def test_a_checkpoint_goes_on_as_it_began(task: Path, tmp_path: Path) -> None:
    """Another method, another rule of RIF, or fewer rows: a sentence, and nothing is lost."""
    short = ["max_steps=4", "save_steps=2", "rif.samples=2"]
    folder = run(task, "rif", tmp_path, *short)
    record = (folder / "rif.json").read_text()
    metrics = (folder / "metrics.jsonl").read_text()
    resume = [*short, f"resume_from_checkpoint={folder}/checkpoint-2"]
    for override, sentence in (
        ("rif.samples=3", "another rif"),
        ("train_data=../test.jsonl", "other rows"),
        ("method=dr_grpo", "is of method 'grpo', not of 'dr_grpo'"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(task, "rif", tmp_path, *resume, override)
        assert (folder / "rif.json").read_text() == record
    run(task, "rif", tmp_path, *resume)
    steps = [json.loads(x)["step"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(x)["step"] for x in metrics.splitlines()]


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("rif", "rif.samples=0", "rif: samples must be at least 1"),
        ("rif", "rif.min_solved=9", "min_solved <= max_solved"),
        ("rif", "rif.sampels=4", "unknown option of rif 'sampels'"),
        ("speft", "parameter_mask.kind=spfet", "did you mean 'speft'"),
        ("speft", "parameter_mask.fraction=2", "fraction must be in"),
        ("speft", "parameter_mask.data=x", "no other kind has any"),
        ("grpo", "parameter_mask={kind: mifo}", "does not have: use mifo or relift"),
        ("luffy", "temperature=0.7", "those of temperature 1"),
        ("luffy", "method.num_demonstrations=8", "demonstration rows in groups of"),
        ("sft", "method.all_wrong=drop", "has no effect in method .sft."),
        ("grpo", "method.all_wrong=dorp", "did you mean 'drop'"),
        ("discriminative", "method.tau=0", "tau must be positive"),
        ("questa", "method.ratios=[2]", "must be a list of numbers in"),
        (STAGED, "max_steps=3", "stage 1 sets 'max_steps'; give stages.1.max_steps=3"),
        (STAGED, "stages.3.max_steps=3", "numbered from 1 to 2"),
        (STAGED, "stages.2.model=x", "cannot have a 'model' of its own"),
        (STAGED, "stages.2.engine=verl", "cannot have a 'engine' of its own"),
        (STAGED, "stages.2.method=grop", "did you mean 'grpo'"),
        (STAGED, "stages.2.resume_from_checkpoint=x", "cannot have a 'resume_from_checkpoint'"),
        ("grpo", "resume_from_checkpoint=nowhere", "is no checkpoint"),
        (STAGED, "resume_from_checkpoint=nowhere", "is no checkpoint"),
        ("speft", "parameter_mask=5", "must be a mapping with a kind"),
        ("retain", "parameter_mask.data=nope.jsonl", "nope.jsonl"),
        ("relift", "method.sft_prompts=100000", "but a generation has 256 rows"),
        ("relift", "method.all_wrong=resample", "prompts that fail are set aside"),
        ("relift", "method.unsolved_at=2", "a solve rate must be in"),
        ("uft", "method.chunks=0", "chunks must be at least 1"),
        ("pope", "method.guided_share=2", "guided_share must be in"),
        ("chord", "method.mu=2", "mu must be in"),
        ("grpo", "method.attempts=9", "'attempts' has no effect"),
        ("rl_sft", "num_generations=2 micro_batch_size=null", "has fewer than two"),
    ],
)
def test_wrong_input(task: Path, tmp_path: Path, name: str, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(
            str(task / "recipes" / f"{name}.yaml"),
            [f"runs={tmp_path}", *([override] if "{" in override else override.split())],
            Console(quiet=True),
        )
    assert not list(tmp_path.iterdir())


def test_a_key_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: base\nbeta: 0.1\ncompare: {seeds: 2}\n")
    assert read_recipe(path, ["~beta", "~none", "seed=3"]) == {
        "model": "base", "compare": {"seeds": 2}, "seed": 3
    }  # fmt: skip
    # Given again after that, it counts; training does not read what is for a comparison.
    assert read_recipe(path, ["~beta", "beta=0.2"])["beta"] == 0.2
    path.write_text("peft: {r: 4, target: {x: 1}}\na.b: 2\nstages: [{beta: 1, seed: 2}]\nname: x\n")
    away = ["~peft.r", "~peft.target.x", "~a.b", "~stages.1.seed", "~none.at.all"]
    assert read_recipe(path, away) == {
        "peft": {"target": {}}, "stages": [{"beta": 1}], "name": "x"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'~name\.x': 'name' is not a mapping"):
        read_recipe(path, ["~name.x"])
    path.write_text("model: base\ntrain_data: x.jsonl\ncompare: {seeds: 2}\n")
    assert "compare" not in RecipeFile.read(path).recipe().trainer


def test_stage_names() -> None:
    data = {"name": "x", "stages": [{"method": "sft"}, {}, {"name": "last"}]}
    assert stage_names(data) == ["x-1-sft", "x-2-prefix_rft", "x-3-last"]
    assert stage_names({"name": "x"}) == ["x"]
