"""An adapter's folder is a model: it is evaluated, looked at and trained with its base under it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file

from prefix_rft import PrefixRFTTrainer
from prefix_rft.cli import main
from prefix_rft.engines import adapters
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.fingerprint import fingerprint
from prefix_rft.engines.models import load_configs, load_model, load_tokenizer
from prefix_rft.engines.new_adapter import config_of, count_trained
from prefix_rft.engines.sampling import SamplingSettings, generate, supported
from prefix_rft.support.errors import UserError
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

TOKENIZER = make_tokenizer()
IDS = torch.arange(3, 27).view(2, 12)


def save(folder: Path, config: Any = None, tokenizer: bool = False, name: str = "adapter") -> Path:
    """A base with an adapter that changes it much, in ``folder/base`` and ``folder/NAME``."""
    if not (folder / "base").is_dir():
        make_model(TOKENIZER, layers=2).save_pretrained(folder / "base")
        TOKENIZER.save_pretrained(folder / "base")
    where: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    base = load_model(str(folder / "base"))[0]
    model: Any = get_peft_model(base, config or LoraConfig(r=4, lora_dropout=0.1, **where))
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    model.save_pretrained(folder / name)
    if tokenizer:
        TOKENIZER.save_pretrained(folder / name)
    rename(folder / name, str(folder / "base"))
    return folder / name


def rename(folder: Path, base: Any) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


def adapter_weights(folder: Path) -> list[torch.Tensor]:
    return list(load_file(folder / adapters.WEIGHTS).values())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def by_hand(folder: Path) -> torch.Tensor:
    """The base's logits with W + B A alpha / r in place of each adapted W."""
    model = load_model(str(folder.parent / "base"))[0]
    found = load_file(folder / adapters.WEIGHTS)
    config = json.loads((folder / adapters.CONFIG).read_text())
    state = model.state_dict()
    for name in [n for n in found if n.endswith("lora_A.weight")]:
        own = name.removeprefix("base_model.model.").replace("lora_A.", "")
        product = found[name.replace("lora_A", "lora_B")] @ found[name]
        state[own] += product * config["lora_alpha"] / config["r"]
    return logits(model)


@pytest.mark.parametrize("named", ["absolute", "from here", "beside"])
def test_the_adapted_model_is_loaded(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path)
    monkeypatch.chdir(tmp_path if named == "from here" else "/")
    rename(folder, {"absolute": str(tmp_path / "base")}.get(named, "base"))
    model, tokenizer = load_model(str(folder))
    torch.testing.assert_close(logits(model), by_hand(folder))
    assert not torch.allclose(logits(model), logits(load_model(str(tmp_path / "base"))[0]))
    assert tokenizer.get_vocab() == load_tokenizer(str(tmp_path / "base")).get_vocab()
    assert not any(p.requires_grad for p in model.parameters())
    config, generation = load_configs(str(folder))
    assert (config.model_type, generation.eos_token_id) == ("qwen3", 1)
    trained, _ = load_model(str(folder), trainable=True)
    assert {n.split(".")[-3] for n, p in trained.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    trained.save_pretrained(tmp_path / "elsewhere" / "deeper")
    shutil.copytree(tmp_path / "elsewhere" / "deeper", tmp_path / "again")
    monkeypatch.chdir("/")  # what is saved finds its base from anywhere
    torch.testing.assert_close(logits(load_model(str(tmp_path / "again"))[0]), by_hand(folder))


def broken(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = folder / adapters.WEIGHTS
    if how == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif how == "damaged config":
        (folder / adapters.CONFIG).write_text("{")
    elif how == "list":
        (folder / adapters.CONFIG).write_text("[]")
    elif how == "no base":
        rename(folder, None)
    elif how == "lost base":
        rename(folder, "/nowhere/base")
    elif how == "unknown base":
        rename(folder, "nobody/nothing")
    elif how == "no peft":
        monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    elif how == "both":
        shutil.copy(folder.parent / "base" / "model.safetensors", folder)
    elif how == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        size = {"smaller": {"hidden": 16}, "shallower": {"layers": 1}, "deeper": {"layers": 3}}
        make_model(TOKENIZER, **size[how]).save_pretrained(folder.parent / how)
        TOKENIZER.save_pretrained(folder.parent / how)
        rename(folder, str(folder.parent / how))


BROKEN = {
    "pickle": "has no adapter_model.safetensors: save it as safetensors",
    "damaged config": "adapter_config.json is damaged",
    "list": "adapter_config.json is damaged",
    "no base": "names no model to adapt",
    "lost base": "adapts the model '/nowhere/base', which is not there",
    "unknown base": "model 'nobody/nothing', which adapter '.*' adapts, cannot be loaded",
    "no peft": r"is an adapter, which needs peft: pip install prefix-rft\[peft\]",
    "both": "holds both a model and an adapter",
    "damaged weights": "cannot be put on the model",
    "smaller": "cannot be put on the model '.*smaller': .*size mismatch",
    "shallower": "0 of its weights are missing and 4 have no place there",
    "deeper": "4 of its weights are missing and 0 have no place there",
}


def counted(folder: Path) -> tuple[int, int]:
    """What ``check`` counts, which reads no weights."""
    adapter = find_adapter(str(folder))
    assert adapter is not None
    return count_trained(load_configs(str(folder))[0], config_of(adapter), adapter)


def test_check_sees_an_adapter_of_another_base(tmp_path: Path, monkeypatch: Any) -> None:
    """It counted the weights of the one as if they went with the other."""
    folder = save(tmp_path)
    model, trained = counted(folder)
    assert trained == sum(w.numel() for w in adapter_weights(folder))
    assert model == trained + sum(
        p.numel() for p in load_model(str(tmp_path / "base"))[0].parameters()
    )
    broken(folder, "smaller", monkeypatch)
    with pytest.raises(
        UserError, match=r"of another model than '.*smaller': its .* here it would be"
    ):
        counted(folder)


KINDS: dict[str, Any] = {
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]),
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "whole modules": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
    "tokens": TrainableTokensConfig(token_indices=[3, 4]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_check_takes_every_adapter_to_be_of_its_own_base(tmp_path: Path, kind: str) -> None:
    counted(save(tmp_path, KINDS[kind]))


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, tokenizer=how != "unknown base")
    broken(folder, how, monkeypatch)
    with pytest.raises(UserError, match=BROKEN[how]) as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)


def test_other_folders_are_no_adapters(tmp_path: Path) -> None:
    save(tmp_path)
    assert adapters.find_adapter(str(tmp_path / "base")) is None
    assert adapters.find_adapter(str(tmp_path / "nothing")) is None
    assert adapters.find_adapter("nobody/nothing") is None


def test_an_evaluation_knows_the_base_too(tmp_path: Path) -> None:
    folder = save(tmp_path)
    before = fingerprint(str(folder))
    make_model(TOKENIZER, layers=2, seed=5).save_pretrained(tmp_path / "base")
    after = fingerprint(str(folder))
    assert before["sha256"] == after["sha256"]
    assert before != after


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_virtual_tokens_stand_before_the_prompt(tmp_path: Path) -> None:
    """Prompt tuning is sampled from by ``generate``; it cannot be trained on, says peft."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    folder = save(tmp_path, config)
    model, _ = load_model(str(folder))
    assert not supported(model)
    prompt, greedy = [5, 9, 20, 31], SamplingSettings((1,), 0, temperature=0.0)
    ids = list(prompt)
    for _ in range(5):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert generate(model, [prompt], 5, greedy) == [ids[4:]]
    with pytest.raises(UserError, match="Cannot set a prompt learning adapter to trainable"):
        load_model(str(folder), trainable=True)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(tmp_path)
    monkeypatch.chdir(tmp_path)
    make_rows(8).to_json("rows.jsonl")
    Path("reward.py").write_text(
        "def digits(completions, **kw):\n    return [sum(c.isdigit() for c in x) / 20 "
        "for x in completions]\n"
    )
    Path("recipe.yaml").write_text(
        "name: x\nmodel: adapter\ntrain_data: rows.jsonl\neval_data: rows.jsonl\n"
        "method: dr_grpo\nreward: reward:digits\nruns: runs\nmax_steps: 2\n"
        "max_completion_length: 30\nprompts_per_step: 2\nnum_generations: 4\nbeta: 0.1\n"
        "learning_rate: 0.01\neval_problems: 4\neval_samples: 1\n"
    )
    return tmp_path / "recipe.yaml"


def test_check_and_inspect(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(recipe)])
    out = " ".join(capsys.readouterr().out.split())
    trained = sum(p.numel() for p in adapter_weights(Path("adapter")))
    assert f"{trained:,} trained" in out
    assert "ready: prefix-rft train" in out
    assert not main(["inspect", str(recipe), "--model", "adapter"])
    assert "continuation" in capsys.readouterr().out
    assert main(["check", str(recipe), "engine=verl"])
    assert "is an adapter, which verl does not load" in " ".join(capsys.readouterr().err.split())


def test_train(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run goes on with the adapter, leaves the base alone, and gives an adapter again."""
    folder = recipe.parent
    base = (folder / "base" / "model.safetensors").read_bytes()
    assert not main(["train", str(recipe), "~eval_data"]), capsys.readouterr().err
    [run] = (folder / "runs").iterdir()
    said = " ".join(capsys.readouterr().out.split())
    assert "dropout is turned off (Dropout.p)" in said
    assert (folder / "base" / "model.safetensors").read_bytes() == base
    saved = run / "model"
    assert (saved / adapters.WEIGHTS).is_file()
    assert not (saved / "model.safetensors").exists()
    before, after = (load_model(str(x))[0] for x in (folder / "adapter", saved))
    moved = (logits(before) - logits(after)).abs().max()
    assert 0 < moved < (logits(before) - logits(load_model("base")[0])).abs().max()


def test_eval(recipe: Path) -> None:
    options = ["--recipe", str(recipe), "--samples", "1", "--temperature", "0"]
    assert not main(["eval", "adapter", "--base", "base", "--output", "evals", *options])
    result = json.loads(Path("evals/result.json").read_text())
    assert {r["model"] for r in result["results"]} == {"model", "base"}
    texts = {
        role: [f.read_text() for f in Path(f"evals/samples/{role}").glob("*.jsonl")]
        for role in ("model", "base")
    }
    assert texts["model"] != texts["base"]


def test_the_reference_is_the_adapted_model_at_the_start(tmp_path: Path) -> None:
    folder = save(tmp_path)
    config = make_config(
        tmp_path / "run",
        beta=0.1,
        max_steps=2,
        num_iterations=2,
        learning_rate=0.05,
        method="dr_grpo",
    )
    trainer = PrefixRFTTrainer(str(folder), shaped_reward, config, make_rows(8))
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "default" in n}
    trainer.train()
    batch = trainer._buffered_inputs[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    first = PeftModel.from_pretrained(load_model(str(tmp_path / "base"))[0], str(folder)).eval()
    with torch.no_grad():
        scored = first(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    size = batch["completion_ids"].size(1)
    wanted = scored[:, -size - 1 : -1].gather(2, batch["completion_ids"][..., None])[..., 0]
    kept = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["ref_per_token_logps"][kept], wanted[kept], rtol=0, atol=1e-5)
    moved = [not p.equal(start[n]) for n, p in trainer.model.named_parameters() if n in start]
    assert all(moved)
