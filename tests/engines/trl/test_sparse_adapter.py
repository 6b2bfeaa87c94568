"""``peft: {peft_type: SHIRA, mask_type: ...}``: a sparse adapter where demonstrations want it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from two_gloo import launch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.cli import main
from prefix_rft.engines.adapters import CONFIG, WEIGHTS
from prefix_rft.engines.models import load_model
from prefix_rft.support.errors import UserError
from prefix_rft.training.train import train
from second.step import trl_run
from second.step.update import Row
from second.step.update import score as score_of
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

RECIPE: dict[str, Any] = {
    "name": "x",
    "model": "base",
    "train_data": "rows.jsonl",
    "method": "sft",
    "runs": "runs",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_completion_length": 24,
    "prompts_per_step": 4,
    "learning_rate": 0.01,
    "peft": {"peft_type": "SHIRA", "r": 2, "target_modules": ["q_proj", "down_proj"]}
    | {"mask_type": "gradient"},
}
QUIET = Console(quiet=True)
LAYERS = [f"model.layers.{i}.{x}" for i in (0, 1) for x in ("self_attn.q_proj", "mlp.down_proj")]


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
    write({})
    return tmp_path


def write(own: dict[str, Any]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **own}, sort_keys=False))


def looked_at(score: str) -> dict[str, torch.Tensor]:
    """Scores of the base by one plain backward for each demonstration."""
    model, tokenizer = load_model("base")[0], make_tokenizer()
    totals = {name: torch.zeros_like(model.get_submodule(name).weight) for name in LAYERS}
    for row in make_rows(8).to_list():
        target = [*tokenizer(row["demonstration"])["input_ids"], trl_run.EOS]
        logp, _ = score_of(model, Row(tokenizer(row["prompt"])["input_ids"], target))
        model.zero_grad()
        (-logp.mean()).backward()
        for name, total in totals.items():
            g = model.get_submodule(name).weight.grad
            total += g**2 if score == "fisher" else g
    w = {name: model.get_submodule(name).weight.detach() for name in LAYERS}
    return {
        name: {
            "gradient": total.abs(),
            "fisher": total,
            "force": -total * w[name],
            "magnitude": w[name].abs(),
        }[score]
        for name, total in totals.items()
    }


def places(folder: Path) -> dict[str, set[tuple[int, int]]]:
    saved = load_file(folder / WEIGHTS)
    return {
        name: set(map(tuple, saved[f"base_model.model.{name}.shira_indices"].T.tolist()))
        for name in LAYERS
    }


def best(scores: dict[str, torch.Tensor], rank: int = 2) -> dict[str, set[tuple[int, int]]]:
    found = {}
    for name, s in scores.items():
        rows, columns = s.shape
        order = s.flatten().argsort(descending=True)[: rank * (rows + columns)]
        found[name] = {(int(i) // columns, int(i) % columns) for i in order}
    return found


@pytest.mark.parametrize("score", ["gradient", "fisher", "force", "magnitude"])
def test_the_most_salient_places_are_trained(here: Path, score: str) -> None:
    write({"peft": {**RECIPE["peft"], "mask_type": score}})
    folder = train("recipe.yaml", ["max_steps=1", "save_strategy=no"], QUIET)
    found, wanted = places(folder / "model"), best(looked_at(score))
    for name in LAYERS:
        assert len(found[name] - wanted[name]) <= 1  # of equals that rounding orders
    weights = load_file(folder / "model" / WEIGHTS)
    sizes = {n: w.numel() for n, w in weights.items() if "shira_weight" in n}
    assert sum(sizes.values()) == 2 * (2 * (32 + 32) + 2 * (64 + 32))
    assert all(w.any() for w in weights.values())


def test_a_run_trains_the_adapter_alone_and_goes_on_to_the_bit(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (here / "base/model.safetensors").read_bytes()
    assert not main(["check", "recipe.yaml"]), capsys.readouterr().err
    assert not main(["train", "recipe.yaml"]), capsys.readouterr().err
    run = here / "runs/x"
    whole = load_file(run / "model" / WEIGHTS)
    trained = sum(w.numel() for n, w in whole.items() if n.endswith("shira_weight"))
    assert f"training {trained:,} of " in " ".join(capsys.readouterr().out.split())
    optimizer = torch.load(run / "checkpoint-4/optimizer.pt", weights_only=True)["state"]
    assert sum(own["exp_avg"].numel() for own in optimizer.values()) == trained
    assert (here / "base/model.safetensors").read_bytes() == base
    assert json.loads((run / "model" / CONFIG).read_text())["mask_type"] == "gradient"

    shutil.copytree(run, here / "cut/x")
    for gone in ("model", "checkpoint-4"):
        shutil.rmtree(here / "cut/x" / gone)
    train("recipe.yaml", ["runs=cut"], QUIET, resume=True)
    again = load_file(here / "cut/x/model" / WEIGHTS)
    assert whole.keys() == again.keys()
    assert all(whole[k].equal(again[k]) for k in whole)


def test_it_is_loaded_and_merged(here: Path) -> None:
    """The sum is the base and the difference at the places."""
    folder = train("recipe.yaml", [], QUIET)
    assert not main(["merge", str(folder), "merged"])
    merged, base = load_file("merged/model.safetensors"), load_file("base/model.safetensors")
    own = load_file(folder / "model" / WEIGHTS)
    for name in LAYERS:
        rows, columns = own[f"base_model.model.{name}.shira_indices"].long()
        wanted = base[f"{name}.weight"].clone()
        wanted[rows, columns] += own[f"base_model.model.{name}.shira_weight"]
        torch.testing.assert_close(merged[f"{name}.weight"], wanted)
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        one, other = (
            load_model(str(x))[0].eval()(ids).logits for x in (folder / "model", "merged")
        )
    torch.testing.assert_close(one, other)


def test_stages_go_on_with_the_same_places(here: Path) -> None:
    rl = {"method": "prefix_rft", "num_generations": 4, "prompts_per_step": 2, "beta": 0.1}
    write({"stages": [{"method": "sft"}, rl], "reward": "spread:digits", "max_steps": 2})
    last = train("recipe.yaml", [], QUIET)
    first = here / "runs/x-1-sft/model"
    assert places(first) == places(last / "model") == best(looked_at("gradient"))
    before, after = load_file(first / WEIGHTS), load_file(last / "model" / WEIGHTS)
    assert any(not before[k].equal(after[k]) for k in before)


@pytest.mark.parametrize("kind", ["SHIRA", "IA3", "LORA"])
def test_the_reference_is_the_adapter_that_a_stage_began_with(here: Path, kind: str) -> None:
    """And not the base: TRL copies the weights of some kinds only."""
    own = {"peft_type": kind, "target_modules": ["q_proj", "down_proj"]}
    own |= {"SHIRA": {"r": 2, "mask_type": "gradient"}, "LORA": {"r": 2}}.get(
        kind, {"feedforward_modules": ["down_proj"]}
    )
    write({"peft": own, "learning_rate": 0.1})
    folder = train("recipe.yaml", ["max_steps=2", "save_strategy=no"], QUIET) / "model"
    model, tokenizer = load_model(str(folder), trainable=True)
    config = make_config(here / "rl", beta=0.1, method="prefix_rft")
    trainer = PrefixRFTTrainer(
        model, shaped_reward, config, make_rows(8), processing_class=tokenizer
    )
    ids = torch.arange(3, 27).view(2, 12)
    found = {}
    with torch.no_grad():
        for name in ("default", "ref"):
            trainer.model.set_adapter(name)
            found[name] = trainer.model.eval()(ids).logits
        with trainer.model.disable_adapter():
            base = trainer.model(ids).logits
    torch.testing.assert_close(found["ref"], found["default"])
    assert not torch.allclose(base, found["default"], atol=1e-3)


@pytest.mark.parametrize(
    ("peft", "more", "sentence"),
    [
        (
            {"mask_type": "gradeint"},
            [],
            "unknown peft.mask_type 'gradeint': did you mean 'gradient'",
        ),
        ({"r": 40}, [], "recipe key 'peft': .*more shira params"),
        ({"target_modules": ["q_porj"]}, [], "the model has no module 'q_porj'"),
        ({"peft_type": "LORA"}, [], "unknown option of peft 'mask_type' .LORA."),
        ({}, ["columns={demonstration: worked}"], "demonstration"),
        ({}, ["max_completion_length=3"], "demonstration"),
    ],
)
def test_what_cannot_be_chosen(here: Path, peft: dict, more: list[str], sentence: str) -> None:
    write({"peft": {**RECIPE["peft"], **peft}})
    with pytest.raises(UserError, match=sentence) as caught:
        train("recipe.yaml", more, QUIET)
    assert len(str(caught.value).splitlines()) == 1
    assert not (here / "runs/x").exists()


def test_sharded_weights_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from prefix_rft.engines.new_adapter import adapter_config
    from prefix_rft.engines.trl.update.sparse_adapter import choose_places

    args = SimpleNamespace(deepspeed="zero.json", fsdp="")
    config = adapter_config(RECIPE["peft"])
    with pytest.raises(UserError, match="FSDP and DeepSpeed spread over processes: give random"):
        choose_places(config, None, None, make_rows(2), args)
    choose_places(adapter_config({"r": 2}), None, None, make_rows(2), args)  # LoRA
    choose_places(None, None, None, make_rows(2), args)
    choose_places(adapter_config({"peft_type": "SHIRA"}), None, None, make_rows(2), args)
    args.deepspeed = None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP and DeepSpeed"):
        choose_places(config, None, None, make_rows(2), args)


@pytest.mark.slow
def test_two_processes_choose_the_same_places(here: Path) -> None:
    """Each has looked at half of the demonstrations."""
    _, ranks = launch("sparse_two_processes.py", here, ["gradient", "fisher"])
    for score in ("gradient", "fisher"):
        wanted = best(looked_at(score))
        for name, indices in ranks[0][score].items():
            assert torch.equal(indices, ranks[1][score][name])
            assert len(set(map(tuple, indices.T.tolist())) - wanted[name]) <= 1
