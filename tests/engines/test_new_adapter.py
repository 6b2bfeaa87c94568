"""``peft`` in a recipe: an adapter is trained in place of the model, and merged into it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft import PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.cli import main
from prefix_rft.engines import adapters
from prefix_rft.engines.models import load_model
from prefix_rft.engines.new_adapter import adapter_config, count_trained
from prefix_rft.methods import BUILT_IN, load
from prefix_rft.training.train import train
from tables import rest_slow
from tiny import make_model, make_rows, make_tokenizer

IDS = torch.arange(3, 27).view(2, 12)
RECIPE = {
    "name": "x",
    "model": "base",
    "train_data": "rows.jsonl",
    "method": "prefix_rft",
    "reward": {"name": "spread:digits", "workers": 1},
    "runs": "runs",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_completion_length": 24,
    "prompts_per_step": 2,
    "num_generations": 4,
    "beta": 0.1,
    "learning_rate": 0.01,
    "peft": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
}
QUIET = Console(quiet=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    make_model(tokenizer, layers=2).save_pretrained("base")
    tokenizer.save_pretrained("base")
    make_rows(8).to_json("rows.jsonl")
    Path("spread.py").write_text(
        "def digits(completions, **kw):\n    return [sum(c.isdigit() for c in x) / 20 "
        "for x in completions]\n"
    )
    write(RECIPE)
    return tmp_path


def write(recipe: dict[str, Any]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / adapters.WEIGHTS)


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return all(first[k].equal(second[k]) for k in first)


def logits(source: str | Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(source))[0].eval()(input_ids=IDS).logits


def test_a_run_trains_the_adapter_and_goes_on_to_the_bit(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (here / "base/model.safetensors").read_bytes()
    assert not main(["train", "recipe.yaml"]), capsys.readouterr().err
    said = " ".join(capsys.readouterr().out.split())
    run = here / "runs/x"
    trained = sum(w.numel() for w in weights(run / "model").values())
    config = json.loads((here / "base/config.json").read_text())
    assert trained == by_hand(config)
    assert f"training {trained:,} of " in said
    assert (here / "base/model.safetensors").read_bytes() == base
    assert not (run / "model/model.safetensors").exists()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["peft"] == RECIPE["peft"]

    shutil.copytree(run, here / "cut/x")
    for gone in ("model", "checkpoint-4"):
        shutil.rmtree(here / "cut/x" / gone)
    train("recipe.yaml", ["runs=cut"], QUIET, resume=True)
    assert same(here / "cut/x/model", run / "model")
    train("recipe.yaml", ["runs=other", "seed=1"], QUIET)
    assert not same(here / "other/x/model", run / "model")


def by_hand(config: dict[str, Any]) -> int:
    """Weights of two matrices for each adapted one."""
    hidden, rank = config["hidden_size"], RECIPE["peft"]["r"]
    queries = config["num_attention_heads"] * config["head_dim"]
    return config["num_hidden_layers"] * rank * (
        hidden + queries + config["intermediate_size"] + hidden
    )  # fmt: skip


@pytest.mark.slow
def test_it_is_what_python_trains(here: Path) -> None:
    """The same trainer with a ``peft_config``, its base without the adapter as the reference."""
    folder = train("recipe.yaml", ["log_rollouts=false"], QUIET)
    known = yaml.safe_load((folder / "recipe.yaml").read_text())["trainer"]
    own = PrefixRFTConfig.__dataclass_fields__.keys() - {"generation_batch_size"}
    fields = {k: v for k, v in known.items() if k in own}
    args = PrefixRFTConfig(**{**fields, "output_dir": str(here / "python"), "method": "prefix_rft"})
    model, tokenizer = load_model("base")
    trainer = PrefixRFTTrainer(
        model,
        lambda completions, **kw: [sum(c.isdigit() for c in x) / 20 for x in completions],
        args,
        train_dataset=make_rows(8),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
        ),
    )
    assert trainer.ref_model is None
    trainer.train()
    trainer.save_model(str(here / "python/model"))
    assert same(here / "python/model", folder / "model")


def test_stages_go_on_with_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {k: v for k, v in RECIPE.items() if k not in ("beta", "num_generations")}
    rl = {"method": "dr_grpo", "beta": 0.1, "num_generations": 4}
    stages = [{"method": "sft"}, rl]
    write({**shared, "max_steps": 2, "stages": stages})
    last = train("recipe.yaml", [], QUIET)
    first = here / "runs/x-1-sft/model"
    assert not same(first, last / "model")
    for folder in (first, last / "model"):
        named = json.loads((folder / adapters.CONFIG).read_text())["base_model_name_or_path"]
        assert named == str(here / "base")
    write({**shared, "stages": [{"method": "sft"}, {**rl, "peft": {"r": 2}}]})
    assert main(["train", "recipe.yaml"]) == 2
    assert "stage 2 of the recipe goes on with the adapter of a stage before" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_changed_adapter_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("recipe.yaml", ["max_steps=2"], QUIET)
    shutil.rmtree(run / "model")
    for changed in ("peft.lora_alpha=16", "peft.r=2", "peft=null"):
        assert main(["train", "recipe.yaml", "--resume", changed]) == 2, changed
        assert "checkpoint" in capsys.readouterr().err
    assert (run / "checkpoint-2").is_dir()


REFUSED = {
    "peft.rr=3": "unknown option of peft 'rr' (LORA): did you mean 'r'?",
    "peft.r=-1": "`r` should be a positive integer",
    "peft.r=many": "recipe key 'peft.r' must be a whole number, got 'many'",
    "peft.peft_type=LORRA": "unknown peft.peft_type 'LORRA': did you mean 'LORA'?",
    "peft.target_modules=[q_proj, q_prj]": "the model has no module 'q_prj': did you mean 'q_proj'",
    "peft.target_modules=q_prj": "Target modules q_prj not found",
    "peft.inference_mode=true": "'peft.inference_mode' cannot be set: the adapter is trained",
    "peft.base_model_name_or_path=x": "cannot be set: the recipe's 'model' is adapted",
    "peft=[1]": "recipe key 'peft' must be a mapping",
    "engine=verl": "'peft' is not there with engine: verl",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_fit_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    for command in ("check", "train"):
        assert main([command, "recipe.yaml", override]) == 2
        err = capsys.readouterr().err
        assert REFUSED[override] in err
        assert len(err.splitlines()) == 1
    assert not (here / "runs").exists()


def test_without_peft(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefix_rft.engines.new_adapter.find_spec", lambda name: None)
    assert main(["train", "recipe.yaml"]) == 2
    assert "'peft' needs peft: pip install prefix-rft[peft]" in capsys.readouterr().err


KINDS = [
    {"r": 4, "target_modules": "all-linear"},
    {"r": 4},
    {"r": 4, "use_rslora": True, "use_dora": True, "target_modules": ["q_proj"]},
    {"r": 4, "target_modules": r".*\.0\..*\.(q|v)_proj"},
    {"peft_type": "ia3", "target_modules": ["k_proj", "down_proj"],
     "feedforward_modules": ["down_proj"]},
    {"peft_type": "VERA", "r": 8, "target_modules": ["q_proj"]},
    {"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj"]},
]  # fmt: skip


@pytest.mark.parametrize("options", rest_slow(KINDS, lambda options: "r" not in options), ids=str)
def test_kinds_of_adapters(
    here: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    """What ``check`` counts is what is trained."""
    write({**RECIPE, "peft": options, "max_steps": 1})
    assert main(["check", "recipe.yaml"]) == 0
    checked = " ".join(capsys.readouterr().out.split())
    assert not main(["train", "recipe.yaml"]), capsys.readouterr().err
    words = " ".join(capsys.readouterr().out.split()).partition("training ")[2].split()
    trained, of_all = words[0], words[2]
    assert f"{of_all} parameters, {trained} trained" in checked


def test_memory_of_an_adapter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients and moments are those of the adapter alone; no second model is the reference."""
    from prefix_rft.checks.weights import count_weights
    from prefix_rft.engines.models import load_configs
    from prefix_rft.engines.setup import configure

    config = load_configs("base")[0]
    setup = configure("recipe.yaml")
    of_all, trained = count_weights(setup, config)
    setup.close()
    assert trained == by_hand(json.loads((here / "base/config.json").read_text()))
    base = sum(p.numel() for p in load_model("base")[0].parameters())
    assert of_all == base + trained
    assert count_trained(config, adapter_config({"r": 8}))[1] > 0
    for overrides, second in (([], False), (["~peft"], True)):
        assert main(["check", "recipe.yaml", *overrides]) == 0
        assert ("reference model" in capsys.readouterr().out) == second


@pytest.mark.slow
def test_an_adapter_that_is_there_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train("recipe.yaml", ["max_steps=1", "name=first"], QUIET)
    model = f"model={first / 'model'}"
    second = train("recipe.yaml", ["max_steps=1", "name=second", model], QUIET)
    assert weights(first / "model").keys() == weights(second / "model").keys()
    for command in ("check", "train"):
        assert main([command, "recipe.yaml", model, "peft.r=8"]) == 2
        err = capsys.readouterr().err
        assert "the model has an adapter with r=4, and recipe key 'peft' asks for 8" in err


def test_merged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("recipe.yaml", ["max_steps=1", "learning_rate=0.5"], QUIET)
    assert not main(["merge", str(run), "merged"])
    assert main(["merge", str(run), "merged"]) == 2
    assert "'merged' exists already" in capsys.readouterr().err
    adapted, merged = logits(run / "model"), logits("merged")
    assert (adapted - merged).abs().max() < 1e-5
    assert (merged - logits("base")).abs().max() > 1e-2
    assert not (here / "merged" / adapters.CONFIG).exists()
    base, one = (load_file(here / f / "model.safetensors") for f in ("base", "merged"))
    assert one.keys() == base.keys()
    # W + B A alpha / r, worked out apart.
    name = "model.layers.0.self_attn.q_proj"
    a, b = (weights(run / "model")[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    expected = base[f"{name}.weight"] + b @ a * 8 / 4
    assert torch.allclose(one[f"{name}.weight"], expected, atol=1e-6)
    assert not main(["merge", str(run / "model"), "half", "--dtype", "bfloat16"])
    assert {w.dtype for w in load_file(here / "half/model.safetensors").values()} == {
        torch.bfloat16
    }
    assert not main(["eval", "merged", "--data", "rows.jsonl", "--reward", "spread:digits",
                     "--samples", "1", "--output", "evals"])  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base", "out"], "'base' is no adapter: there is nothing to merge"),
        (["nowhere", "out"], "'nowhere' is no adapter"),
        (["base", "rows.jsonl/out"], "rows.jsonl' is no folder"),
        (["base", "out", "--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_what_cannot_be_merged(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["merge", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in " ".join(err.split())
    assert not (here / "out").exists()


def test_an_adapter_that_needs_the_weights_is_not_counted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some kinds, BOFT for one, compute on weights when they are made."""

    def refused(model: Any, config: Any) -> Any:
        raise NotImplementedError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr("peft.get_peft_model", refused)
    assert main(["check", "recipe.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "memory: not estimated, the adapter needs the model's weights: Tensor.item()" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", [n for n in BUILT_IN if load(n).needs_reference])
def test_a_method_with_a_reference_keeps_no_second_model(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not main(["task", "countdown", str(tmp_path), "--train-rows", "60", "--test-rows", "5"])
    recipe = str(tmp_path / f"recipes/{method}.yaml")
    more = ["eval_data=null", "prompts_per_step=4", "micro_batch_size=null", "max_steps=2"]
    more += [f"runs={tmp_path}/runs", "peft={r: 4, target_modules: all-linear}"]
    assert not main(["train", recipe, *more]), capsys.readouterr().err
    [run] = (tmp_path / "runs").iterdir()
    kept = sum(p.stat().st_size for p in (run / "checkpoint-2").rglob("reference.safetensors"))
    assert kept < (tmp_path / "base/model.safetensors").stat().st_size / 4
    assert any(w.any() for n, w in weights(run / "model").items() if "lora_B" in n)


def test_a_model_that_transformers_does_not_have(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without an adapter the same sentence."""

    def none(config: Any, **kwargs: Any) -> Any:
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", none)
    for overrides in ([], ["~peft"]):
        assert main(["check", "recipe.yaml", *overrides]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "memory: not estimated, model type 'qwen3' cannot be counted" in said


@pytest.mark.parametrize("first", [{}, {"r": 2}])
def test_an_adapter_of_another_kind_is_refused_before_any_stage(
    here: Path, first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {k: v for k, v in RECIPE.items() if k not in ("beta", "num_generations", "peft")}
    stages = [{"method": "sft", "peft": first}, {"method": "sft", "peft": {"r": 4}}]
    write({**shared, "stages": stages})
    assert main(["train", "recipe.yaml"]) == 2
    assert "goes on with the adapter of a stage before" in capsys.readouterr().err
    assert not (here / "runs").exists()
